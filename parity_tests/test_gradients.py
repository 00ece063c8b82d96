"""Properties of the layers alone: derivatives against differences, masks, dropout, sinusoids."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.test_util import check_grads

from jaxformer.layers.attention import MultiHeadAttention, attention
from jaxformer.layers.blocks import DecoderBlock, EncoderBlock
from jaxformer.layers.dropout import dropout, fold_path, keep_mask, step_key
from jaxformer.layers.linear import affine
from jaxformer.layers.masks import causal_mask, padding_mask
from jaxformer.layers.mlp import MLP
from jaxformer.layers.norms import layer_norm
from jaxformer.layers.positions import sinusoidal_positions
from jaxformer.models.functional import abstract_model, merge
from jaxformer.models.transformer import Transformer
from jaxformer.parity.bounds import BOUNDS, UNITS_IN_LAST_PLACE
from jaxformer.parity.engine.cases import TINY, Case, draw_params
from jaxformer.parity.engine.settings import arithmetic
from jaxformer.parity.proofs.transformer import transformer_case
from jaxformer.porting.compare import relative_error
from jaxformer.training.loss import cross_entropy

CASE = Case(dataclasses.replace(TINY, activation="gelu"))


@pytest.fixture(autouse=True)
def in_float64():
    with arithmetic("float64"):
        yield


def normal(name, *shape):
    return jnp.asarray(CASE.normal(name, *shape))


def check(function, args, modes):
    """Against central differences; they come as numpy arrays, which the layers refuse."""
    check_grads(jax.jit(lambda *a: function(*jax.tree.map(jnp.asarray, a))), args, 1, modes)


def module(build):
    graphdef, shapes = abstract_model(build, CASE.model_config)
    params = draw_params(CASE, shapes)
    return lambda params, *args: merge(graphdef, params)(*args), params


def test_derivative_of_affine():
    check(affine, (normal("x", 3, 4), normal("w", 4, 5), normal("b", 5)), ["rev"])


def test_derivative_of_attention():
    q, k, v = (normal(name, 2, 4, 2, 3) for name in "qkv")
    check(lambda *a: attention(*a, causal_mask(4)), (q, k, v), ["fwd", "rev"])


def test_derivative_of_layer_norm():
    x, scale, bias = normal("x", 3, 8), normal("scale", 8), normal("bias", 8)
    check(lambda *a: layer_norm(*a, 1e-5), (x, scale, bias), ["fwd", "rev"])


@pytest.mark.parametrize("build", [MLP, EncoderBlock])
def test_derivative_of_modules(build):
    function, params = module(build)

    def output(*arguments):
        return jax.tree.leaves(function(*arguments))[0]  # a block returns its cache, None, too

    check(output, (params, normal("x", 2, 3, TINY.width)), ["rev"])


@pytest.mark.parametrize("placement", ["pre", "post"])
def test_derivative_of_the_decoder_block(placement):
    config = dataclasses.replace(CASE.config, norm_placement=placement)
    graphdef, shapes = abstract_model(DecoderBlock, dataclasses.replace(config, dtype="float64"))
    params = draw_params(CASE, shapes)
    memory_mask = padding_mask(jnp.array([[True, True, True, False], [True, False, False, False]]))

    def function(params, x, memory):
        return merge(graphdef, params)(x, memory, causal_mask(3), memory_mask)[0]

    inputs = normal("x", 2, 3, TINY.width), normal("memory", 2, 4, TINY.width)
    check(function, (params, *inputs), ["rev"])


@pytest.mark.parametrize("share", [True, False])
def test_derivative_of_the_transformer(share):
    case = transformer_case(CASE, activation="gelu", num_layers=1, share_embeddings=share)
    graphdef, shapes = abstract_model(Transformer, case.model_config)
    source, target = (jnp.asarray(case.tokens(name, 2, 3)) for name in ("source", "target"))
    valid = jnp.array([[True, True, True], [True, False, False]])
    check(
        lambda p: merge(graphdef, p)(source, target, valid), (draw_params(case, shapes),), ["rev"]
    )


def test_derivative_of_the_loss():
    targets, mask = jnp.array([[0, 1, 2]]), jnp.array([[True, False, True]])
    logits = normal("x", 1, 3, 4)
    check(lambda x: cross_entropy(x, targets, mask)[0], (logits,), ["fwd", "rev"])


@given(length=st.integers(2, 6), seed=st.integers(0, 100))
def test_no_output_depends_on_the_future_or_on_padding(length, seed):
    case = dataclasses.replace(CASE, seed=seed)
    x = jnp.asarray(case.normal("x", 1, length, TINY.width))
    function, params = module(MultiHeadAttention)
    valid = jnp.arange(length)[None] != 1

    @jax.jit
    @jax.grad
    def gradient(x, position):
        mask = causal_mask(length) & padding_mask(valid)
        return function(params, x, None, mask)[0][0, position].sum()

    for position in range(length):
        seen = np.abs(gradient(x, position)[0]).sum(axis=-1) > 0
        expected = np.arange(length) <= position
        expected[1] = False  # padding; and its own query has one key alone to attend to
        np.testing.assert_array_equal(seen, expected)


def test_a_row_that_may_attend_to_nothing_is_zero_with_zero_gradients():
    q, k, v = (normal(name, 2, 3, 2, 4) for name in "qkv")
    mask = jnp.array([True, False])[:, None, None, None]

    def second_row(q, k, v):
        return attention(q, k, v, mask)[0][1]

    out, weights = attention(q, k, v, mask)
    assert not np.any(out[1])
    assert not np.any(weights[1])
    rounding = UNITS_IN_LAST_PLACE * np.finfo(float).eps
    np.testing.assert_allclose(weights[0].sum(-1), 1.0, rtol=rounding)
    for gradient in jax.grad(lambda *a: second_row(*a).sum(), (0, 1, 2))(q, k, v):
        np.testing.assert_array_equal(gradient, 0.0)


@given(rate=st.sampled_from([0.1, 0.5, 0.9]), step=st.integers(0, 1000))
def test_the_mask_inside_is_that_of_key_path_and_step(rate, step):
    base, x = jax.random.key(7), jnp.ones((4, 5))
    key = step_key(base, step)
    kept = keep_mask(fold_path(key, "blocks", 3, "mlp_dropout"), rate, x.shape)
    dropped = dropout(x, rate, fold_path(fold_path(key, "blocks", 3), "mlp_dropout"))
    np.testing.assert_array_equal(dropped, np.where(kept, 1.0 / (1.0 - rate), 0.0))


def test_units_are_kept_with_the_probability_of_the_rate():
    kept = keep_mask(jax.random.key(0), 0.2, (100, 1000))
    assert abs(float(kept.mean()) - 0.8) < 4 * math.sqrt(0.16 / kept.size)


def test_without_a_key_or_at_rate_0_nothing_is_dropped():
    x = normal("x", 3)
    assert dropout(x, 0.5, None) is x
    assert dropout(x, 0.0, jax.random.key(0)) is x
    assert fold_path(None, "blocks") is None


@given(length=st.integers(1, 50), half=st.integers(1, 16))
def test_sinusoids_are_the_papers_formula(length, half):
    table = sinusoidal_positions(length, 2 * half)
    for p in (0, length - 1):
        for i in range(half):
            angle = p / 10_000 ** (2 * i / (2 * half))
            expected = np.array([math.sin(angle), math.cos(angle)])
            error = relative_error(table[p, 2 * i : 2 * i + 2], expected)
            assert error <= BOUNDS["layer", "float64"]
