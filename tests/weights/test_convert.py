"""Conversion by table: from_torch inverts to_torch, and every mismatch is reported at once."""

import dataclasses

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxformer.config import BERT_PRESETS, GPT_PRESETS, TRANSFORMER_PRESETS
from jaxformer.errors import UserError
from jaxformer.models.bert import Bert
from jaxformer.models.functional import abstract_model, flat_params, init_params, num_parameters
from jaxformer.models.gpt import GPT
from jaxformer.models.transformer import Transformer
from jaxformer.weights import tables
from jaxformer.weights.convert import Row, from_torch, to_torch
from jaxformer.weights.families import bert, gpt2, marian
from jaxformer.weights.transforms import Halves, Transpose
from jaxformer.weights.twin import TWIN

CONFIG = GPT_PRESETS["toy"]
TABLES = {"twin": TWIN, "Hugging Face": gpt2.HUGGING_FACE}


@pytest.fixture(scope="module")
def params():
    return init_params(GPT, CONFIG, jax.random.key(0))


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_there_and_back_changes_nothing(params, table):
    _, shapes = abstract_model(GPT, CONFIG)
    back = from_torch(to_torch(params, table), table, shapes)
    jax.tree.map(np.testing.assert_array_equal, back, params)


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_every_number_is_in_exactly_one_tensor(params, table):
    total = sum(array.size for array in to_torch(params, table).values())
    assert total == num_parameters(params)


@pytest.mark.parametrize("table", [TWIN, bert.HUGGING_FACE])
def test_berts_tables_go_there_and_back_and_hold_every_number(table):
    config = BERT_PRESETS["toy"]
    params = init_params(Bert, config, jax.random.key(0))
    tensors = to_torch(params, table)
    assert sum(array.size for array in tensors.values()) == num_parameters(params)
    jax.tree.map(np.testing.assert_array_equal, from_torch(tensors, table, params), params)


@pytest.mark.parametrize(
    ("table", "options"),
    [
        (TWIN, {}),
        (TWIN, {"share_embeddings": False, "norm_placement": "pre"}),
        (marian.HUGGING_FACE, {}),
        (tables.MARIAN_HUGGING_FACE, {}),
    ],
)
def test_the_transformers_tables_go_there_and_back_and_hold_every_number(table, options):
    config = dataclasses.replace(TRANSFORMER_PRESETS["toy"], **options)
    params = init_params(Transformer, config, jax.random.key(0))
    tensors = to_torch(params, table)
    assert sum(array.size for array in tensors.values()) == num_parameters(params)
    jax.tree.map(np.testing.assert_array_equal, from_torch(tensors, table, params), params)


def test_all_that_does_not_match_is_reported_together(params):
    _, shapes = abstract_model(GPT, CONFIG)
    arrays = to_torch(params, TWIN)
    del arrays["norm.bias"]
    arrays["lm_head.weight"] = np.zeros((2, 2))
    arrays["embed.weight"] = arrays["embed.weight"][:-1]
    arrays["blocks.1.mlp.up.weight"] = arrays["blocks.1.mlp.up.weight"].T
    with pytest.raises(UserError) as refusal:
        from_torch(arrays, TWIN, shapes)
    message = str(refusal.value)
    assert "in 4 places" in message
    for part in (
        "norm/bias needs norm.bias, which is missing",
        "lm_head.weight has no leaf",
        "embed/embedding is (64, 32) but embed.weight gives (63, 32)",
        "blocks/1/mlp/up/kernel is (32, 128) but blocks.1.mlp.up.weight gives (128, 32)",
    ):
        assert part in message


def test_leaves_without_a_row_are_reported_in_both_directions(params):
    table = [row for row in gpt2.HUGGING_FACE if not row.paths[0].startswith("norm/")]
    for convert in (
        lambda: to_torch(params, table),
        lambda: from_torch(to_torch(params, gpt2.HUGGING_FACE), table, params),
    ):
        with pytest.raises(UserError, match="norm/bias has no row") as refusal:
            convert()
        assert "norm/scale has no row" in str(refusal.value)


def test_a_tensor_of_another_rank_is_reported(params):
    arrays = to_torch(params, gpt2.HUGGING_FACE)
    arrays["transformer.h.0.attn.c_attn.weight"] = np.asarray(1.0, np.float32)
    arrays["transformer.h.0.attn.c_attn.bias"] = np.zeros(97)
    with pytest.raises(UserError, match="in 6 places"):
        from_torch(arrays, gpt2.HUGGING_FACE, params)


def test_a_missing_part_is_reported_in_both_directions(params):
    attention = params["blocks"][0]["attention"]
    less = {name: part for name, part in attention.items() if name != "key"}
    whole, params = params, {"blocks": {0: {"attention": less}}}
    said = "h.0.attn.c_attn.bias is made of 3 leaves but 2 are there"
    with pytest.raises(UserError, match=said):
        to_torch(params, gpt2.HUGGING_FACE)
    with pytest.raises(UserError, match=said):
        from_torch(to_torch(whole, gpt2.HUGGING_FACE), gpt2.HUGGING_FACE, params)


@given(
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    seed=st.integers(0, 9),
    data=st.data(),
)
@settings(deadline=None, max_examples=30)
def test_any_transposition_is_undone(shape, seed, data):
    axes = tuple(data.draw(st.permutations(range(len(shape)))))
    leaf = np.random.default_rng(seed).standard_normal(shape)
    table = [Row("a/*/b", "x.*.y", (Transpose(axes),))]
    arrays = to_torch({"a": {"k": {"b": leaf}}}, table)
    np.testing.assert_array_equal(arrays["x.k.y"], leaf.transpose(axes))
    back = from_torch(arrays, table, {"a": {"k": {"b": leaf}}})
    np.testing.assert_array_equal(back["a"]["k"]["b"], leaf)


def test_types_are_those_asked_for(params):
    halves = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, np.float16), params)
    back = from_torch(to_torch(params, TWIN), TWIN, halves)
    assert {leaf.dtype for leaf in flat_params(back).values()} == {np.dtype(np.float16)}


@given(
    sizes=st.lists(st.integers(1, 4), min_size=2, max_size=4),
    axis=st.sampled_from([0, 1]),
    seed=st.integers(0, 9),
)
def test_leaves_of_any_sizes_are_joined_in_the_order_of_the_row(sizes, axis, seed):
    """Transforms act on each leaf before it is joined."""
    rng = np.random.default_rng(seed)
    shapes = [(size, 3) if axis == 1 else (3, size) for size in sizes]  # transposed by the row
    leaves = {f"part{i}": rng.standard_normal(shape) for i, shape in enumerate(shapes)}
    row = Row(tuple(f"m/{name}/w" for name in leaves), "x.w", (Halves(0), Transpose((1, 0))), axis)
    params = {"m": {name: {"w": leaf} for name, leaf in reversed(leaves.items())}}
    tensors = to_torch(params, [row])
    expected = [Halves(0).forward(leaf).T for leaf in leaves.values()]
    np.testing.assert_array_equal(tensors["x.w"], np.concatenate(expected, axis))
    jax.tree.map(np.testing.assert_array_equal, from_torch(tensors, [row], params), params)


def test_the_twin_rule_keeps_the_path_however_deep():
    params = {
        "kernel": np.ones((2, 3)),
        "a": {"0": {"b": {"scale": np.ones(4)}}, "bias": np.ones(1)},
    }
    shapes = {name: array.shape for name, array in to_torch(params, TWIN).items()}
    assert shapes == {"weight": (3, 2), "a.0.b.weight": (4,), "a.bias": (1,)}


def test_the_former_names_mean_what_they_meant():
    assert tables.GPT is tables.TRANSFORMER is tables.BERT is TWIN
    assert tables.GPT2_HUGGING_FACE is gpt2.HUGGING_FACE
    assert tables.BERT_HUGGING_FACE is bert.HUGGING_FACE
    params = init_params(Transformer, TRANSFORMER_PRESETS["toy"], jax.random.key(0))
    tensors = to_torch(params, tables.MARIAN_HUGGING_FACE)
    np.testing.assert_array_equal(tensors["model.shared.weight"], params["embed"]["embedding"])
    assert tensors.keys() == to_torch(params, marian.HUGGING_FACE).keys()
