"""Sharding rules: every leaf by its path, optimizer moments like their parameter."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxformer.config import (
    BERT_PRESETS,
    DECODER_PRESETS,
    GPT_PRESETS,
    TRANSFORMER_PRESETS,
    MeshConfig,
)
from jaxformer.models.bert import Bert
from jaxformer.models.decoder import Decoder
from jaxformer.models.functional import abstract_model, flat_params, init_params, merge
from jaxformer.models.gpt import GPT
from jaxformer.models.stacked import is_stacked
from jaxformer.models.transformer import Transformer
from jaxformer.sharding import rules
from jaxformer.sharding.mesh import make_mesh
from jaxformer.sharding.rules import RULES, spec_for, state_shardings
from jaxformer.tasks.language_modeling import language_spec
from jaxformer.tasks.program import build
from tests.flags import AS_USERS_COMPILE
from tests.meshes import EACH_MESH, MESHES, MIXED, toy_batches, toy_run

MODELS = (
    (GPT, GPT_PRESETS["toy"]),
    (Transformer, TRANSFORMER_PRESETS["toy"]),
    (Transformer, dataclasses.replace(TRANSFORMER_PRESETS["toy"], share_embeddings=False)),
    (Bert, BERT_PRESETS["toy"]),
    (GPT, dataclasses.replace(GPT_PRESETS["toy"], scan_layers=True)),
    (Decoder, DECODER_PRESETS["toy"]),
    (
        Decoder,
        dataclasses.replace(
            DECODER_PRESETS["toy"],
            tie_embeddings=False,
            attention_bias=True,
            mlp_bias=True,
            qk_norm=True,
        ),
    ),
)
"""Every kind of matrix is in one of them: an option that adds one gets a row."""


def test_moments_are_sharded_like_their_parameter():
    mesh = make_mesh(MeshConfig(data=1, fsdp=4, tensor=2))
    program = build(language_spec(toy_run()), mesh)
    batch = jax.device_put(toy_batches(1)[0], program.rows)
    state, _ = program.train_step(program.fresh_state(), batch)
    specs = {path: leaf.sharding.spec for path, leaf in flat_params(state).items()}
    params = {p.removeprefix("params/"): s for p, s in specs.items() if p.startswith("params/")}
    assert params["blocks/0/mlp/up/kernel"] == P("fsdp", "tensor")
    for path, spec in params.items():
        moments = [s for p, s in specs.items() if p.startswith("opt") and p.endswith(f"/{path}")]
        assert moments == [spec, spec], path


def test_fsdp_divides_the_memory_of_every_matrix():
    program = build(language_spec(toy_run()), make_mesh(MeshConfig(data=1, fsdp=8)))
    state = program.fresh_state()
    for path, leaf in flat_params(state.params).items():
        if leaf.ndim == 2 and path != "positions/embedding":
            assert leaf.addressable_shards[0].data.size * 8 == leaf.size, path


@pytest.fixture
def no_compilation_cache():
    """A cached program prints no warning; jax checks for a cache only once, so it is reset."""
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    yield
    jax.config.update("jax_enable_compilation_cache", True)
    compilation_cache.reset_cache()


def compile_step(mesh: MeshConfig) -> None:
    program = build(language_spec(toy_run()), make_mesh(mesh))
    batch = jax.device_put(toy_batches(1)[0], program.rows)
    program.train_step.lower(program.state, batch).compile()


@pytest.mark.usefixtures("no_compilation_cache")
@EACH_MESH
def test_the_compiler_replicates_no_activations(mesh, capfd):
    compile_step(mesh)
    # XLA warns on standard error when it has to replicate what it should split.
    assert "rematerialization" not in capfd.readouterr().err


@pytest.mark.usefixtures("no_compilation_cache")
def test_columns_of_the_embedding_over_fsdp_would_make_it_replicate_them(capfd, monkeypatch):
    planted = ((RULES[0][0], P("tensor", "fsdp")), *RULES[1:])
    monkeypatch.setattr(rules, "RULES", planted)
    compile_step(MESHES[MIXED])
    assert "rematerialization" in capfd.readouterr().err


def test_an_axis_that_does_not_divide_stays_whole():
    mesh = make_mesh(MeshConfig(data=1, fsdp=4, tensor=2))
    assert spec_for("embed/embedding", (65, 128), mesh) == P(None, None)
    assert spec_for("embed/embedding", (64, 130), mesh) == P(("tensor", "fsdp"), None)
    assert spec_for("blocks/0/mlp/up/kernel", (6, 128), mesh) == P(None, "tensor")


@pytest.mark.parametrize(("model", "config"), MODELS)
def test_every_matrix_but_the_small_tables_has_a_rule(model, config):
    mesh = make_mesh(MeshConfig(data=1, fsdp=4, tensor=2))
    shapes = abstract_model(model, config)[1]
    for path, leaf in flat_params(shapes).items():
        whole = spec_for(path, leaf.shape, mesh) == P()
        vector = leaf.ndim - is_stacked(path) == 1
        small = vector or path in ("positions/embedding", "segments/embedding")
        assert whole <= small, path
    assert jax.tree.structure(state_shardings(shapes, mesh)) == jax.tree.structure(shapes)


@pytest.mark.parametrize("rule", RULES, ids=[pattern for pattern, _ in RULES])
def test_every_rule_matches_a_leaf(rule, monkeypatch):
    monkeypatch.setattr(rules, "RULES", (rule,))
    mesh = make_mesh(MeshConfig(data=1, fsdp=4, tensor=2))
    placed = {
        spec_for(path, leaf.shape, mesh)
        for model, config in MODELS
        for path, leaf in flat_params(abstract_model(model, config)[1]).items()
    }
    assert rule[1] in placed


def test_the_kernel_of_berts_head_is_sharded():
    mesh = make_mesh(MeshConfig(data=1, fsdp=4, tensor=2))
    assert spec_for("head/dense/kernel", (32, 32), mesh) == P("fsdp", "tensor")


@EACH_MESH
def test_bert_and_its_gradients_on_a_mesh_equal_those_on_one_device(mesh):
    graphdef, _ = abstract_model(Bert, BERT_PRESETS["toy"])
    params = init_params(Bert, BERT_PRESETS["toy"], jax.random.key(0))
    tokens = np.random.default_rng(0).integers(0, 64, (8, 16), dtype=np.int32)
    valid = np.arange(16) < np.arange(9, 17)[:, None]

    def loss(params, tokens, valid):
        return (merge(graphdef, params)(tokens, tokens % 2, valid) ** 2).mean()

    step = jax.jit(jax.value_and_grad(loss), compiler_options=AS_USERS_COMPILE)
    alone = step(params, tokens, valid)
    devices = make_mesh(mesh)
    rows = NamedSharding(devices, P(("data", "fsdp")))
    spread = jax.device_put(params, state_shardings(params, devices))
    found = step(spread, *jax.device_put((tokens, valid), rows))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=2e-6), found, alone)
