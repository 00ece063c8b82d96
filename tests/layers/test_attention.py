"""Attention by its implementations: each equals plain, and each is chosen where it applies."""

import dataclasses
import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.config import BERT_PRESETS, GPT_PRESETS, TRANSFORMER_PRESETS
from jaxformer.errors import UserError
from jaxformer.evaluation.attention_maps import attention_weights
from jaxformer.layers import attention as module
from jaxformer.layers.attention import (
    attention,
    choose_implementation,
    query_blocks_attention,
)
from jaxformer.layers.blockwise_attention import blockwise_attention
from jaxformer.layers.flash_attention import flash_attention
from jaxformer.layers.masks import CAUSAL, Mask, as_mask, causal_mask
from jaxformer.models.bert import Bert
from jaxformer.models.functional import abstract_model, init_params, merge
from jaxformer.models.gpt import GPT
from jaxformer.models.transformer import Transformer
from jaxformer.parity.bounds import BOUNDS
from jaxformer.porting.compare import relative_error
from jaxformer.tasks.program import require_attention
from tests.objectives import gradient

B, H, K = 3, 2, 8


def gpu(compute_capability: str) -> mock.Mock:
    """A device that says what it is."""
    fields = {"platform": "gpu", "device_kind": f"a GPU of {compute_capability}"}
    return mock.Mock(spec=jax.Device, compute_capability=compute_capability, **fields)


H100 = gpu("9.0")


def drawn(L: int, M: int, dtype: str = "float32") -> tuple[jax.Array, ...]:
    """Queries, keys, values and the cotangent of the output."""
    rng, shapes = np.random.default_rng(7), [(B, n, H, K) for n in (L, M, M, L)]
    return tuple(jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes)


def value_and_gradients(function, q, k, v, d_out) -> list[jax.Array]:
    out, pullback = jax.vjp(function, q, k, v)
    return [out, *pullback(d_out)]


MASKS = {
    "causal, more queries": (11, 5, lambda rng: CAUSAL),
    "lengths, none of a row": (5, 11, lambda rng: Mask(lengths_B=jnp.asarray([11, 0, 4]))),
    "all parts": (
        7,
        7,
        lambda rng: Mask(True, jnp.asarray([7, 6, 1]), jnp.asarray(rng.random((B, 1, 7, 7)) < 0.7)),
    ),
    "dense of each head": (7, 11, lambda rng: jnp.asarray(rng.random((1, H, 1, 11)) < 0.5)),
}


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("in_blocks", [blockwise_attention, query_blocks_attention])
def test_blocks_are_plain_where_they_do_not_divide_the_lengths(in_blocks, name):
    with jax.enable_x64(True):
        L, M, make = MASKS[name]
        mask, arrays = make(np.random.default_rng(3)), drawn(L, M, "float64")
        expected = value_and_gradients(lambda *qkv: attention(*qkv, mask)[0], *arrays)
        found = value_and_gradients(lambda *qkv: in_blocks(*qkv, as_mask(mask), block=3), *arrays)
        for ours, theirs in zip(found, expected, strict=True):
            assert relative_error(ours, theirs) <= BOUNDS["layer", "float64"]


def test_a_flash_row_without_keys_is_zero_with_zero_gradients():
    mask = Mask(lengths_B=jnp.asarray([5, 0, 2]))
    for array in value_and_gradients(lambda *x: flash_attention(*x, mask, "xla"), *drawn(5, 5)):
        assert not array[1].any()
        assert array[0].any()


def test_blockwise_has_no_array_of_queries_by_keys():
    def loss(implementation):
        return lambda q, k, v: implementation(q, k, v, CAUSAL).sum()

    def has_scores(implementation) -> bool:
        gradient = jax.grad(loss(implementation), (0, 1, 2))
        return "173,173" in str(jax.make_jaxpr(gradient)(*drawn(173, 173)[:3]))

    assert has_scores(lambda *arguments: attention(*arguments)[0])
    assert not has_scores(lambda *arguments: blockwise_attention(*arguments, block=7))


@pytest.mark.parametrize(
    ("chosen", "device", "dtype", "length", "width", "mask", "is_dropping"),
    [
        ("plain", None, "float32", module.LONG - 1, 8, CAUSAL, False),
        ("query_blocks", None, "float32", module.LONG, 8, CAUSAL, False),
        ("query_blocks", None, "bfloat16", module.VERY_LONG - 1, 8, CAUSAL, False),
        ("blockwise", None, "float32", module.VERY_LONG, 8, CAUSAL, False),
        ("blockwise", None, "float32", module.LONG, 8, Mask(lengths_B=jnp.ones(1)), False),
        ("blockwise", None, "bfloat16", module.LONG, 8, Mask(dense_BHLM=causal_mask(3)), False),
        ("plain", None, "float32", module.LONG, 8, CAUSAL, True),
        ("flash", H100, "bfloat16", 5, 256, CAUSAL, False),
        ("flash", H100, "float16", 5, 8, Mask(lengths_B=jnp.ones(1)), False),
        ("plain", H100, "float32", module.LONG, 8, CAUSAL, False),
        ("plain", H100, "bfloat16", 5, 8, CAUSAL, True),
        ("plain", H100, "bfloat16", 5, 8, Mask(dense_BHLM=causal_mask(5)), False),
        ("plain", H100, "bfloat16", 5, 12, CAUSAL, False),
        ("plain", H100, "bfloat16", 5, 264, CAUSAL, False),
        ("plain", gpu("8.0"), "bfloat16", 5, 136, CAUSAL, False),
        ("flash", gpu("8.0"), "bfloat16", 5, 128, CAUSAL, False),
        ("plain", gpu("7.5"), "bfloat16", 5, 64, CAUSAL, False),
        ("plain", gpu("gfx90a"), "bfloat16", 5, 64, CAUSAL, False),
    ],
)
def test_auto_chooses(monkeypatch, chosen, device, dtype, length, width, mask, is_dropping):
    if device is not None:
        monkeypatch.setattr(module.jax, "devices", lambda *backend: [device])
    q = jnp.zeros((1, length, 1, width), dtype)
    assert choose_implementation(q, q, mask, is_dropping) == chosen


def test_a_gpt_with_attention_in_blocks_is_the_plain_one(monkeypatch):
    monkeypatch.setattr(module, "QUERY_BLOCK", 5)
    monkeypatch.setattr("jaxformer.layers.blockwise_attention.BLOCK", 5)
    with jax.enable_x64(True):
        tokens = jnp.asarray(np.random.default_rng(0).integers(0, 64, (2, 17)))
        # The gradient of a key's bias is truly 0, and its relative error without meaning.
        config = dataclasses.replace(
            GPT_PRESETS["toy"], num_layers=1, dtype="float64", use_bias=False
        )
        params = init_params(GPT, config, jax.random.key(0))

        def gradients(**options):
            graphdef, _ = abstract_model(GPT, dataclasses.replace(config, **options))
            loss = jax.value_and_grad(lambda p: jnp.square(merge(graphdef, p)(tokens)).sum())
            return jax.tree.leaves(jax.jit(loss)(params))

        expected = gradients(attention="plain")
        for options in (
            {"attention": "query_blocks"},
            {"attention": "blockwise"},
            {"attention": "blockwise", "remat": "full"},
        ):
            for ours, theirs in zip(gradients(**options), expected, strict=True):
                assert relative_error(ours, theirs) <= BOUNDS["model", "float64"]


@pytest.mark.parametrize("name", ["bert", "transformer"])
def test_lengths_of_rows_are_a_mask_of_their_tokens(name):
    lengths = jnp.asarray([5, 2])
    tokens, valid = jnp.arange(10).reshape(2, 5), jnp.arange(5) < lengths[:, None]
    model, config = {
        "bert": (Bert, BERT_PRESETS["toy"]),
        "transformer": (Transformer, TRANSFORMER_PRESETS["toy"]),
    }[name]
    built = merge(abstract_model(model, config)[0], init_params(model, config, jax.random.key(0)))

    def logits(padding):
        if name == "bert":
            return built(tokens, None, padding)
        return built(tokens, tokens, padding, padding)

    np.testing.assert_array_equal(logits(lengths), logits(valid))
    assert not np.array_equal(logits(lengths), logits(None))


def test_attention_maps_are_the_weights_whatever_the_implementation():
    config, tokens = GPT_PRESETS["toy"], np.arange(6)[None]
    params = init_params(GPT, config, jax.random.key(0))

    def maps(implementation):
        chosen = dataclasses.replace(config, attention=implementation)
        model = merge(abstract_model(GPT, chosen)[0], params)
        weights = attention_weights(model, tokens)
        assert model.blocks[0].attention.implementation == implementation
        return weights

    jax.tree.map(np.testing.assert_array_equal, maps("blockwise"), maps("plain"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"attention": "blockwise", "dropout_rate": 0.1}, "model.attention blockwise"),
        ({"attention": "flash", "dtype": "bfloat16", "dropout_rate": 0.1}, "attention-dropout"),
        ({"attention": "flash"}, "--model.dtype bfloat16, not float32"),
        ({"attention": "flash", "dtype": "bfloat16", "num_heads": 8}, "multiple of 8.*not 4"),
        ({"attention": "flash", "dtype": "bfloat16", "width": 1056}, "at most 256, not 264"),
    ],
)
def test_an_implementation_that_cannot_compute_the_model_is_refused(options, words):
    with pytest.raises(UserError, match=words):
        dataclasses.replace(GPT_PRESETS["toy"], **options)


def test_what_the_implementations_can_compute_is_accepted():
    options = {"dropout_rate": 0.1, "attention_dropout": False}
    dataclasses.replace(GPT_PRESETS["toy"], attention="blockwise", **options)
    dataclasses.replace(GPT_PRESETS["toy"], attention="flash", dtype="bfloat16", **options)


def test_flash_is_refused_where_the_device_has_no_kernel():
    wide = dataclasses.replace(GPT_PRESETS["toy"], width=1024, attention="flash", dtype="bfloat16")
    for device in (jax.devices()[0], gpu("8.0")):
        with pytest.raises(UserError, match=r"model.attention flash.*--model.attention auto"):
            require_attention(wide, device)
    require_attention(wide, H100)
    require_attention(dataclasses.replace(wide, attention="auto"), jax.devices()[0])


@pytest.mark.parametrize("name", ["gpt", "transformer", "bert"])
def test_no_objective_makes_a_dense_mask(monkeypatch, name):
    """Which flash refuses, and for which `auto` would not choose it."""
    by_arrays = functools.partial(flash_attention, kernel="xla")
    monkeypatch.setattr(module, "flash_attention", by_arrays)
    options = {"attention": "flash", "dtype": "bfloat16", "attention_dropout": False}
    function, *arguments = gradient(name, num_layers=1, **options)
    jax.eval_shape(function, *arguments)


def test_flash_refuses_a_dense_mask():
    with pytest.raises(UserError, match=r"model.attention flash.*lengths"):
        flash_attention(*drawn(5, 5)[:3], Mask(dense_BHLM=causal_mask(5)))
