"""Sampling: the tokens that filters keep, the distribution of samples, refused settings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from jaxformer.config import SamplingConfig
from jaxformer.decoding.sampling import (
    filter_logits,
    greedy,
    gumbel_noise,
    min_p,
    sample,
    select_token,
    top_k,
    top_p,
)
from jaxformer.decoding.state import row_keys
from jaxformer.errors import UserError

INF = np.inf


def test_top_k_keeps_all_that_tie_with_the_kth():
    logits_BV = jnp.array([[1.0, 3.0, 1.0, 0.0]])
    np.testing.assert_array_equal(top_k(logits_BV, 2), [[1.0, 3.0, 1.0, -INF]])


def test_top_p_keeps_the_token_that_crosses_p_and_the_higher_id_of_a_tie():
    logits_BV = jnp.log(jnp.array([[0.5, 0.25, 0.25]]))
    np.testing.assert_array_equal(jnp.isfinite(top_p(logits_BV, 0.4)), [[True, False, False]])
    np.testing.assert_array_equal(jnp.isfinite(top_p(logits_BV, 0.6)), [[True, False, True]])
    np.testing.assert_array_equal(jnp.isfinite(top_p(logits_BV, 0.8)), [[True, True, True]])


def test_min_p_compares_with_the_likeliest():
    logits_BV = jnp.log(jnp.array([[0.6, 0.31, 0.09]]))
    np.testing.assert_array_equal(jnp.isfinite(min_p(logits_BV, 0.5)), [[True, True, False]])


def test_greedy_takes_the_lowest_id_of_a_tie():
    assert greedy(jnp.array([[0.0, 2.0, 2.0]])).tolist() == [1]


@settings(deadline=None, max_examples=50)
@given(
    logits_BV=arrays(np.float32, (2, 6), elements=st.floats(-50, 50, width=32)),
    k=st.integers(1, 6),
    p=st.floats(0.01, 1.0) | st.just(1e-9),
)
def test_filters_never_exclude_a_likeliest_token(logits_BV, k, p):
    config = SamplingConfig(temperature=0.7, top_k=k, top_p=p, min_p=p)
    kept = filter_logits(jnp.asarray(logits_BV), jnp.zeros((2, 6), bool), config)
    best = logits_BV.max(axis=-1)
    np.testing.assert_allclose(kept.max(axis=-1), best / 0.7, rtol=1e-6, atol=1e-6)


def test_filters_are_the_same_when_compiled():
    config = SamplingConfig(temperature=0.7, top_k=9, top_p=0.9, min_p=0.01, repetition_penalty=1.3)
    logits_BV = 3 * jax.random.normal(jax.random.key(0), (8, 16))
    seen_BV = jax.random.bernoulli(jax.random.key(1), 0.5, (8, 16))
    eager = filter_logits(logits_BV, seen_BV, config)
    compiled = jax.jit(filter_logits, static_argnums=2)(logits_BV, seen_BV, config)
    np.testing.assert_array_equal(jnp.isinf(compiled), jnp.isinf(eager))
    np.testing.assert_allclose(compiled, eager, rtol=1e-6)


def test_samples_follow_the_softmax():
    probabilities = np.array([0.5, 0.3, 0.15, 0.05, 0.0])
    draws = 20_000
    with np.errstate(divide="ignore"):
        logits_BV = jnp.tile(jnp.log(jnp.asarray(probabilities)), (draws, 1))
    tokens = sample(logits_BV, gumbel_noise(row_keys(0, draws), 0, logits_BV))
    counts = np.bincount(tokens, minlength=5)
    deviation = np.sqrt(draws * probabilities * (1 - probabilities))
    assert (np.abs(counts - draws * probabilities) <= 4 * deviation).all()


def test_noise_of_a_row_depends_only_on_its_key_and_step():
    keys = row_keys(3, 4)
    noise = gumbel_noise(keys, 7, jnp.zeros((4, 9)))
    alone = gumbel_noise(keys[2:3], 7, jnp.zeros((1, 9)))
    np.testing.assert_array_equal(noise[2:3], alone)
    assert not jnp.array_equal(noise[2], noise[1])
    assert not jnp.array_equal(noise, gumbel_noise(keys, 8, jnp.zeros((4, 9))))
    mixed = gumbel_noise(keys, jnp.array([7, 8, 7, 9]), jnp.zeros((4, 9)))
    np.testing.assert_array_equal(mixed[::2], noise[::2])
    np.testing.assert_array_equal(mixed[1], gumbel_noise(keys, 8, jnp.zeros((4, 9)))[1])


def test_temperature_zero_ignores_noise_and_filters_but_not_the_penalty():
    logits_BV, noise_BV = jnp.array([[1.0, 1.1, 0.0]]), jnp.array([[0.0, 0.0, 100.0]])
    seen_BV = jnp.array([[False, True, False]])
    plain = SamplingConfig(temperature=0, top_k=1)
    assert select_token(logits_BV, seen_BV, plain, noise_BV).tolist() == [1]
    penalised = SamplingConfig(temperature=0, repetition_penalty=2.0)
    assert select_token(logits_BV, seen_BV, penalised, noise_BV).tolist() == [0]


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": -1.0},
        {"temperature": 1e-40},
        {"temperature": INF},
        {"temperature": np.nan},
        {"top_k": 0},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"top_p": np.nan},
        {"min_p": -0.1},
        {"min_p": 1.1},
        {"repetition_penalty": 0.0},
        {"repetition_penalty": INF},
    ],
)
def test_settings_out_of_range_are_refused_by_their_flag(fields):
    flag = next(iter(fields)).replace("_", "-")
    with pytest.raises(UserError, match=f"^{flag} .*choose"):
        SamplingConfig(**fields)
