"""Placement: every leaf by its path, moments beside their parameter."""

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxformer.config import BERT_PRESETS, GPTConfig, MeshConfig
from jaxformer.models.bert import Bert
from jaxformer.models.gpt import GPT
from jaxformer.models.pure import abstract_model, bind, flat_params, init_params
from jaxformer.run.language import language_method
from jaxformer.run.program import build
from jaxformer.sharding.mesh import make_mesh
from jaxformer.sharding.rules import RULES, spec_for, state_shardings
from tests.meshes import MESHES, toy_batches, toy_run


def test_moments_lie_beside_their_parameter():
    mesh = make_mesh(MeshConfig(data=1, fsdp=4, tensor=2))
    program = build(language_method(toy_run()), mesh)
    batch = jax.device_put(toy_batches(1)[0], program.rows)
    state, _ = program.train_step(program.fresh_state(), batch)
    places = {path: leaf.sharding.spec for path, leaf in flat_params(state).items()}
    params = {p.removeprefix("params/"): s for p, s in places.items() if p.startswith("params/")}
    assert params["blocks/0/mlp/up/kernel"] == P("fsdp", "tensor")
    for path, spec in params.items():
        moments = [s for p, s in places.items() if p.startswith("opt") and p.endswith(f"/{path}")]
        assert moments == [spec, spec], path


def test_fsdp_divides_the_memory_of_every_matrix():
    program = build(language_method(toy_run()), make_mesh(MeshConfig(data=1, fsdp=8)))
    state = program.fresh_state()
    for path, leaf in flat_params(state.params).items():
        if leaf.ndim == 2 and path != "positions/embedding":
            assert leaf.addressable_shards[0].data.size * 8 == leaf.size, path


@pytest.fixture
def compile_anew():
    jax.config.update("jax_enable_compilation_cache", False)
    yield
    jax.config.update("jax_enable_compilation_cache", True)


@pytest.mark.usefixtures("compile_anew")
def test_no_mesh_makes_the_compiler_replicate_activations(capfd):
    # XLA says so on standard error where it can only replicate what it should split.
    for mesh in MESHES.values():
        program = build(language_method(toy_run()), make_mesh(mesh))
        batch = jax.device_put(toy_batches(1)[0], program.rows)
        program.train_step.lower(program.state, batch).compile()
    assert "rematerialization" not in capfd.readouterr().err


def test_an_axis_that_does_not_divide_stays_whole():
    mesh = make_mesh(MeshConfig(data=1, fsdp=4, tensor=2))
    assert spec_for("embed/embedding", (65, 128), mesh) == P(None, None)
    assert spec_for("embed/embedding", (64, 130), mesh) == P(("tensor", "fsdp"), None)
    assert spec_for("blocks/0/mlp/up/kernel", (6, 128), mesh) == P(None, "tensor")


def test_every_matrix_of_the_model_has_a_rule_and_every_rule_a_leaf():
    mesh = make_mesh(MeshConfig(data=1, fsdp=4, tensor=2))
    config = GPTConfig(
        vocab_size=64, context_length=16, width=32, num_heads=4, mlp_width=64, num_layers=1
    )
    leaves = flat_params(abstract_model(GPT, config)[1])
    used = set()
    for path, leaf in leaves.items():
        spec = spec_for(path, leaf.shape, mesh)
        assert spec != P() or leaf.ndim == 1 or path == "positions/embedding", path
        used |= {spec} if spec != P() else set()
    assert used == {spec for _, spec in RULES}
    shardings = state_shardings(abstract_model(GPT, config)[1], mesh)
    assert jax.tree.structure(shardings) == jax.tree.structure(abstract_model(GPT, config)[1])


def test_every_matrix_of_bert_has_a_rule_but_the_small_tables():
    mesh = make_mesh(MeshConfig(data=1, fsdp=4, tensor=2))
    for path, leaf in flat_params(abstract_model(Bert, BERT_PRESETS["toy"])[1]).items():
        whole = spec_for(path, leaf.shape, mesh) == P()
        assert not whole or leaf.ndim == 1 or path.startswith(("positions", "segments")), path
    assert spec_for("head/dense/kernel", (32, 32), mesh) == P("fsdp", "tensor")


@pytest.mark.parametrize("mesh", MESHES.values(), ids=MESHES)
def test_bert_and_its_gradients_are_the_same_on_any_mesh(mesh):
    graph, _ = abstract_model(Bert, BERT_PRESETS["toy"])
    params = init_params(Bert, BERT_PRESETS["toy"], jax.random.key(0))
    tokens = np.random.default_rng(0).integers(0, 64, (8, 16), dtype=np.int32)
    valid = np.arange(16) < np.arange(9, 17)[:, None]

    def loss(params, tokens, valid):
        return (bind(graph, params)(tokens, tokens % 2, valid) ** 2).mean()

    step = jax.jit(jax.value_and_grad(loss))
    alone = step(params, tokens, valid)
    devices = make_mesh(mesh)
    rows = NamedSharding(devices, P(("data", "fsdp")))
    spread = jax.device_put(params, state_shardings(params, devices))
    found = step(spread, *jax.device_put((tokens, valid), rows))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=2e-6), found, alone)
