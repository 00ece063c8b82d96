"""The step written out for each device is the step the compiler divides, and slices at once."""

import functools

import jax
import numpy as np
import pytest

from jaxformer.config import MeshConfig, OptimizerConfig
from jaxformer.models.functional import abstract_model, init_params
from jaxformer.models.gpt import GPT
from jaxformer.parity.bounds import BOUNDS, FLOAT32_LOSSES, FLOAT32_STATE
from jaxformer.parity.engine.settings import arithmetic
from jaxformer.planning.hlo import collectives
from jaxformer.porting.compare import ZERO_GRADIENT, relative_error
from jaxformer.sharding.mesh import batch_sharding, make_mesh
from jaxformer.sharding.rules import state_shardings
from jaxformer.training import chunks
from jaxformer.training.data_parallel import make_data_parallel_step
from jaxformer.training.objectives import next_token
from jaxformer.training.optimizer import adamw
from jaxformer.training.step import init_state, make_train_step
from tests.meshes import Ran, gathered, toy_batches, toy_run

DATA_8 = MeshConfig(data=8)
STEPS = 5
RULE = OptimizerConfig(warmup_steps=2)


@functools.cache
def run(form: str, dtype: str, dropout: bool, mesh: MeshConfig = DATA_8) -> Ran:
    """Some steps of `shard_map`, of `jit` on the mesh, or of eight `slices` on one device."""
    with arithmetic(dtype):
        config = toy_run(dtype).model
        graphdef, _ = abstract_model(GPT, config)
        key = jax.random.key(1) if dropout else None
        rule = adamw(RULE, STEPS)
        state = init_state(init_params(GPT, config, jax.random.key(0)), rule)
        devices = make_mesh(mesh)
        if form == "shard_map":
            step = jax.jit(make_data_parallel_step(devices, graphdef, next_token, rule, key))
        elif form == "jit":
            places, rows = state_shardings(state, devices), batch_sharding(devices)
            step = jax.jit(
                make_train_step(graphdef, next_token, rule, key),
                in_shardings=(places, rows),
                out_shardings=(places, None),
            )
        else:
            step = jax.jit(make_train_step(graphdef, next_token, rule, key, 8))
        reports = []
        for batch in toy_batches(STEPS):
            if form == "shard_map":  # device d has the rows of slice d
                batch = jax.tree.map(lambda x: np.concatenate([x[d::8] for d in range(8)]), batch)
            state, metrics = step(state, batch)
            reports.append(metrics)
        return gathered(state, reports)


def assert_same(found: Ran, expected: Ran, dtype: str):
    """Losses in any type, everything by the bound of a model in float64."""
    np.testing.assert_allclose(found.losses, expected.losses, rtol=0, atol=FLOAT32_LOSSES)
    assert found.state.keys() == expected.state.keys()
    bound = BOUNDS["model", "float64"] if dtype == "float64" else FLOAT32_STATE
    assert relative_error(found.losses, expected.losses) <= bound
    assert relative_error(found.grad_norms, expected.grad_norms) <= bound
    for path, leaf in found.state.items():
        error = relative_error(leaf, expected.state[path], path.endswith(ZERO_GRADIENT))
        assert error <= bound, path


@pytest.mark.parametrize(
    ("dtype", "mesh"),
    [
        ("float32", DATA_8),
        pytest.param("float64", MeshConfig(data=4, fsdp=2), marks=pytest.mark.slow),
    ],
)
def test_written_out_it_is_what_the_compiler_makes(dtype, mesh):
    assert_same(run("shard_map", dtype, False, mesh), run("jit", dtype, False, mesh), dtype)


def test_with_dropout_eight_devices_are_eight_slices():
    found = run("shard_map", "float64", True)
    assert_same(found, run("slices", "float64", True), "float64")
    assert abs(found.losses - run("jit", "float32", False).losses).max() > 1e-3


def test_each_device_may_cut_its_loss_into_chunks(monkeypatch):
    """jax checks which values differ between devices as it traces."""
    monkeypatch.setattr(chunks, "LARGEST_CHUNK", 64)
    config = toy_run().model
    graphdef, shapes = abstract_model(GPT, config)
    rule = adamw(RULE, STEPS)
    step = make_data_parallel_step(make_mesh(MeshConfig()), graphdef, next_token, rule, None)
    state = jax.eval_shape(lambda params: init_state(params, rule), shapes)
    program = str(jax.make_jaxpr(step)(state, toy_batches(1)[0]))
    assert program.count("scan[") == 1


def test_it_sends_its_sums_and_nothing_else():
    config = toy_run().model
    graphdef, shapes = abstract_model(GPT, config)
    rule = adamw(RULE, STEPS)
    step = make_data_parallel_step(make_mesh(MeshConfig()), graphdef, next_token, rule, None)
    state = jax.eval_shape(lambda params: init_state(params, rule), shapes)
    found = collectives(jax.jit(step).lower(state, toy_batches(1)[0]).compile().as_text())
    assert {one.kind for one in found} == {"all-reduce"}
    sent = sum(leaf.size * 4 for leaf in jax.tree.leaves(shapes)) + 8
    # The token embedding has two gradients, of looking up and of scoring, which XLA adds here.
    assert sent <= sum(one.bytes for one in found) <= sent + 4 * config.vocab_size * config.width
