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
from jaxformer.weights.convert import from_torch, to_torch
from jaxformer.weights.tables import Row

CONFIG = GPT_PRESETS["toy"]
TABLES = {"twin": tables.GPT, "Hugging Face": tables.GPT2_HUGGING_FACE}


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


@pytest.mark.parametrize("table", [tables.BERT, tables.BERT_HUGGING_FACE])
def test_berts_tables_go_there_and_back_and_hold_every_number(table):
    config = BERT_PRESETS["toy"]
    params = init_params(Bert, config, jax.random.key(0))
    tensors = to_torch(params, table)
    assert sum(array.size for array in tensors.values()) == num_parameters(params)
    jax.tree.map(np.testing.assert_array_equal, from_torch(tensors, table, params), params)


@pytest.mark.parametrize(
    ("table", "options"),
    [
        (tables.TRANSFORMER, {}),
        (tables.TRANSFORMER, {"share_embeddings": False, "norm_placement": "pre"}),
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
    arrays = to_torch(params, tables.GPT)
    del arrays["norm.bias"]
    arrays["lm_head.weight"] = np.zeros((2, 2))
    arrays["embed.weight"] = arrays["embed.weight"][:-1]
    arrays["blocks.1.mlp.up.weight"] = arrays["blocks.1.mlp.up.weight"].T
    with pytest.raises(UserError) as refusal:
        from_torch(arrays, tables.GPT, shapes)
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
    table = [row for row in tables.GPT if not row.jax.startswith("norm/")]
    for convert in (
        lambda: to_torch(params, table),
        lambda: from_torch(to_torch(params, tables.GPT), table, params),
    ):
        with pytest.raises(UserError, match="norm/bias has no row") as refusal:
            convert()
        assert "norm/scale has no row" in str(refusal.value)


def test_a_tensor_of_another_rank_is_reported(params):
    arrays = to_torch(params, tables.GPT2_HUGGING_FACE)
    arrays["transformer.h.0.attn.c_attn.weight"] = np.asarray(1.0, np.float32)
    arrays["transformer.h.0.attn.c_attn.bias"] = np.zeros(97)
    with pytest.raises(UserError, match="in 6 places"):
        from_torch(arrays, tables.GPT2_HUGGING_FACE, params)


def test_a_missing_part_is_reported(params):
    table = [row for row in tables.GPT2_HUGGING_FACE if "key" not in row.jax]
    with pytest.raises(UserError, match="key/bias has no row"):
        to_torch(params, table)


@given(
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    seed=st.integers(0, 9),
    data=st.data(),
)
@settings(deadline=None, max_examples=30)
def test_any_transposition_is_undone(shape, seed, data):
    axes = tuple(data.draw(st.permutations(range(len(shape)))))
    leaf = np.random.default_rng(seed).standard_normal(shape)
    table = [Row("a/*/b", "x.*.y", axes)]
    arrays = to_torch({"a": {"k": {"b": leaf}}}, table)
    np.testing.assert_array_equal(arrays["x.k.y"], leaf.transpose(axes))
    back = from_torch(arrays, table, {"a": {"k": {"b": leaf}}})
    np.testing.assert_array_equal(back["a"]["k"]["b"], leaf)


def test_types_are_those_asked_for(params):
    halves = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, np.float16), params)
    back = from_torch(to_torch(params, tables.GPT), tables.GPT, halves)
    assert {leaf.dtype for leaf in flat_params(back).values()} == {np.dtype(np.float16)}
