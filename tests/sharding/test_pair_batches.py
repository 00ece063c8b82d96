"""The Transformer on pairs of texts, with accumulation: every mesh equals one device."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxformer.batch import PairBatch
from jaxformer.config import TRANSFORMER_PRESETS, MeshConfig, NoamConfig
from jaxformer.models.functional import abstract_model, flat_params, init_params
from jaxformer.models.transformer import Transformer
from jaxformer.parity.bounds import BOUNDS
from jaxformer.parity.engine.settings import arithmetic
from jaxformer.porting.compare import ZERO_GRADIENT, relative_error
from jaxformer.sharding.mesh import batch_sharding, make_mesh
from jaxformer.sharding.rules import state_shardings
from jaxformer.training.objectives import translation
from jaxformer.training.optimizer import adam
from jaxformer.training.step import init_state, make_train_step
from tests.flags import AS_USERS_COMPILE
from tests.meshes import EVERY_MESH, Ran, gathered

CONFIG = dataclasses.replace(TRANSFORMER_PRESETS["toy"], num_layers=1, dropout_rate=0.1)
STEPS, SLICES = 20, 2


def pairs(step: int) -> PairBatch:
    """16 pairs, source and target of lengths 1 to 9 and 1 to 7; 0 is padding, 1 start, 2 end."""
    rng = np.random.default_rng(step)
    source = rng.integers(3, 64, (16, 9), dtype=np.int32)
    target = rng.integers(3, 64, (16, 7), dtype=np.int32)
    valid = np.arange(9) < rng.integers(1, 10, (16, 1))
    ends = rng.integers(0, 7, (16, 1))
    mask = np.arange(7) <= ends
    target[np.arange(7) == ends] = 2
    inputs = np.concatenate([np.ones((16, 1), np.int32), target[:, :-1]], axis=1)
    return PairBatch(
        np.where(valid, source, 0),
        valid,
        np.where(mask, inputs, 0),
        np.where(mask, target, 0),
        mask,
    )


def run(mesh_config: MeshConfig, devices=None, dtype: str = "float32") -> Ran:
    """Twenty steps of two slices each, dropout on."""
    config = dataclasses.replace(CONFIG, dtype=dtype)
    mesh = make_mesh(mesh_config, devices)
    graphdef, _ = abstract_model(Transformer, config)
    rule = adam(NoamConfig(warmup_steps=20), config.width)
    objective = translation("kl", 0.1, 0)
    state = init_state(init_params(Transformer, config, jax.random.key(0)), rule)
    shardings = state_shardings(state, mesh)
    step = jax.jit(
        make_train_step(graphdef, objective, rule, jax.random.key(1), SLICES),
        in_shardings=(shardings, batch_sharding(mesh)),
        out_shardings=(shardings, None),
        compiler_options=AS_USERS_COMPILE,
    )
    state = jax.device_put(state, shardings)
    reports = []
    for i in range(STEPS):
        state, metrics = step(state, jax.device_put(pairs(i), batch_sharding(mesh)))
        reports.append(metrics)
    return gathered(state, reports)


@pytest.fixture(scope="module")
def one_device() -> Ran:
    return run(MeshConfig(), jax.devices()[:1])


@pytest.mark.slow  # the quick set compares the state, in float64
@EVERY_MESH
def test_losses_on_a_mesh_equal_those_of_one_device(one_device, mesh):
    np.testing.assert_allclose(run(mesh).losses, one_device.losses, rtol=0, atol=2e-6)


def test_float64_state_on_the_mixed_mesh_equals_that_of_one_device():
    with arithmetic("float64"):
        alone = run(MeshConfig(), jax.devices()[:1], "float64")
        found = run(MeshConfig(data=2, fsdp=2, tensor=2), None, "float64")
    bound = BOUNDS["model", "float64"]
    assert relative_error(found.losses, alone.losses) <= bound
    assert relative_error(found.grad_norms, alone.grad_norms) <= bound
    for path, leaf in found.state.items():
        # With an epsilon of 1e-9, Adam amplifies the rounding noise of a gradient that is zero.
        if not path.endswith(ZERO_GRADIENT):
            assert relative_error(leaf, alone.state[path]) <= bound, path


def test_every_parameter_changes_during_training(one_device):
    """If every update were 0, all meshes would agree trivially."""
    first = flat_params(init_params(Transformer, CONFIG, jax.random.key(0)))
    for path, leaf in first.items():
        assert np.abs(one_device.state[f"params/{path}"] - leaf).max() > 1e-4, path
