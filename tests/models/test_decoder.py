"""The decoder without a twin: what its options mean, causality by gradients, refusals."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.config import DECODER_PRESETS, DecoderConfig, RopeScaling
from jaxformer.errors import UserError
from jaxformer.evaluation.attention_maps import attention_weights
from jaxformer.layers.cache import init_cache
from jaxformer.layers.rotary import rotation
from jaxformer.models.decoder import Decoder
from jaxformer.models.functional import abstract_model, init_params, merge

TOY = DECODER_PRESETS["toy"]
WINDOW = dataclasses.replace(TOY, sliding_window=3, num_layers=1)


def made(config: DecoderConfig):
    return merge(abstract_model(Decoder, config)[0], drawn(config))


def drawn(config: DecoderConfig):
    return init_params(Decoder, dataclasses.replace(config, init_std=0.3), jax.random.key(0))


def input_gradients(config: DecoderConfig, position: int) -> np.ndarray:
    """Gradient of one position's hidden state with respect to each token's embedding, (L, D)."""
    graphdef, params = abstract_model(Decoder, config)[0], drawn(config)

    def state(shift):
        model = merge(graphdef, params)
        table = model.embed
        model.embed = lambda tokens: table(tokens) + shift
        return (model.hidden(jnp.arange(10)[None])[0][0, position] ** 2).sum()

    return np.asarray(jax.grad(state)(jnp.zeros((1, 10, config.width))))[0]


def test_no_gradient_comes_from_the_future():
    grads = np.abs(input_gradients(TOY, 5)).sum(axis=-1)
    assert (grads[6:] == 0).all()
    assert (grads[:6] > 0).all()


def test_a_window_of_three_is_the_token_itself_and_the_two_before_it():
    grads = np.abs(input_gradients(WINDOW, 5)).sum(axis=-1)
    assert (grads > 0).tolist() == [False] * 3 + [True] * 3 + [False] * 4


@pytest.mark.parametrize("attention", ["plain", "query_blocks", "blockwise"])
def test_attention_is_the_same_function_by_every_name(attention):
    capped = dataclasses.replace(WINDOW, attention_soft_cap=2.0, init_std=0.3)
    params = init_params(Decoder, capped, jax.random.key(0))
    tokens = jnp.arange(16)[None]
    logits = [
        merge(abstract_model(Decoder, dataclasses.replace(capped, attention=name))[0], params)(
            tokens
        )
        for name in ("auto", attention)
    ]
    np.testing.assert_allclose(*logits, rtol=0, atol=1e-5)


def test_scores_depend_on_the_distance_of_two_positions_alone():
    turns = rotation(jnp.arange(7)[None], TOY)
    later = rotation(jnp.arange(100, 107)[None], TOY)
    for a, b in (turns, later):
        products = jnp.einsum("blk,bmk->blmk", a, a) + jnp.einsum("blk,bmk->blmk", b, b)
        np.testing.assert_allclose(
            products[:, 1:, 1:], products[:, :-1, :-1], rtol=0, atol=1e-5
        )  # cos(p - q)


def test_caches_hold_the_key_value_heads_alone():
    cache = init_cache(TOY, 3, 11)[0]
    assert cache.k_BHMK.shape == (3, TOY.num_kv_heads, 11, TOY.head_width)
    assert TOY.num_kv_heads < TOY.num_heads


def test_attention_maps_have_every_query_head_and_nothing_beyond_the_window():
    weights = attention_weights(made(WINDOW), np.arange(10)[None])["blocks/0/attention"]
    assert weights.shape == (1, WINDOW.num_heads, 10, 10)
    np.testing.assert_allclose(weights.sum(axis=-1), 1.0, rtol=1e-6)
    distance = np.arange(10)[:, None] - np.arange(10)
    assert ((weights > 0) == ((distance >= 0) & (distance < 3))).all()


def test_logits_stay_below_the_final_cap():
    model = made(dataclasses.replace(TOY, final_soft_cap=0.5))
    logits = np.asarray(model(jnp.arange(10)[None]))
    assert 0.4 < np.abs(logits).max() < 0.5


def test_a_text_longer_than_the_context_is_refused():
    with pytest.raises(UserError, match="18 tokens exceed the context of 17"):
        made(TOY)(jnp.zeros((1, 18), int))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"num_kv_heads": 3}, "model.num-heads 4 .* model.num-kv-heads 3"),
        ({"head_width": 7}, "model.head-width 7"),
        ({"head_width": 2}, "model.head-width 2"),
        ({"rope_base": 1.0}, "model.rope-base 1.0"),
        ({"sliding_window": 0}, "model.sliding-window 0"),
        ({"final_soft_cap": 0.0}, "model.final-soft-cap 0.0"),
        (
            {"attention": "flash", "dtype": "bfloat16", "head_width": 8, "attention_soft_cap": 1.0},
            "model.attention flash has no soft cap",
        ),
    ],
)
def test_what_cannot_be_computed_is_refused_by_its_flag(changes, named):
    with pytest.raises(UserError, match=named):
        dataclasses.replace(TOY, **changes)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"factor": 0.5}, "model.rope-scaling.factor 0.5"),
        ({"kind": "longer"}, "model.rope-scaling.kind longer"),
        ({"low_frequency_factor": 5.0}, "model.rope-scaling.low-frequency-factor 5.0"),
    ],
)
def test_a_scaling_that_is_none_is_refused_by_its_flag(changes, named):
    with pytest.raises(UserError, match=named):
        RopeScaling(**changes)
