"""The filters against those of transformers and against the twin; draws against the twin."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

import torchref.config
from jaxformer.config import SamplingConfig
from jaxformer.decoding import sampling
from jaxformer.parity.bounds import BOUNDS, UNITS_IN_LAST_PLACE
from torchref.decoding import sampling as twin

DTYPES = pytest.mark.parametrize("dtype", ["float32", "float64"])
examples = settings(deadline=None, max_examples=60)


@st.composite
def drawn_logits(draw):
    """(B, V) with ties, signed zeros, huge values and excluded tokens."""
    element = st.one_of(
        st.integers(-3, 3).map(float),
        st.floats(-30, 30, width=32, allow_subnormal=False),
        st.sampled_from([0.0, -0.0, -1e30, 1e30, -np.inf]),
    )
    shape = draw(st.sampled_from([(2, 8), (1, 1)]))
    logits_BV = draw(arrays(np.float64, shape, elements=element))
    logits_BV[:, -1] = np.where(np.isinf(logits_BV).all(axis=-1), 0.0, logits_BV[:, -1])
    return logits_BV


def probabilities(logits_BV):
    weights = np.exp(logits_BV - logits_BV.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def assume_clear(gaps, dtype):
    """Discard an example with a gap so small that rounding decides; exact zeros are kept."""
    assume(not ((gaps != 0) & (np.abs(gaps) < BOUNDS["layer", dtype])).any())


def ours(function, logits_BV, dtype, *args):
    """The function's result in one precision, as a numpy array."""
    with jax.enable_x64(dtype == "float64"):
        args = [jnp.asarray(arg) if isinstance(arg, np.ndarray) else arg for arg in args]
        return np.asarray(function(jnp.asarray(logits_BV, dtype), *args))


def assert_equal_to_rounding(actual, expected, dtype):
    """Within a few units in the last place; XLA flushes subnormal numbers to 0."""
    limits = np.finfo(dtype)
    rounding = UNITS_IN_LAST_PLACE * limits.eps
    np.testing.assert_allclose(actual, expected, rtol=rounding, atol=limits.tiny)


def theirs(processor, logits_BV, dtype, seen=None):
    ids = torch.zeros(len(logits_BV), 0, dtype=torch.long) if seen is None else torch.tensor(seen)
    return processor(ids, torch.tensor(logits_BV, dtype=getattr(torch, dtype))).numpy()


@DTYPES
@examples
@given(logits_BV=drawn_logits(), k=st.integers(1, 15))
def test_top_k_is_transformers_and_the_twin(dtype, logits_BV, k):
    actual = ours(sampling.top_k, logits_BV, dtype, k)
    np.testing.assert_array_equal(actual, theirs(TopKLogitsWarper(k), logits_BV, dtype))
    logits = torch.tensor(logits_BV, dtype=getattr(torch, dtype))
    np.testing.assert_array_equal(actual, twin.top_k(logits, k).numpy())


@DTYPES
@examples
@given(logits_BV=drawn_logits(), p=st.floats(0.01, 1.0) | st.sampled_from([0.25, 0.5, 0.75]))
def test_top_p_is_transformers_and_the_twin(dtype, logits_BV, p):
    sums = np.cumsum(np.sort(probabilities(logits_BV), axis=-1), axis=-1)
    assume_clear(sums[:, :-1] - (1 - p), dtype)
    actual = ours(sampling.top_p, logits_BV, dtype, p)
    np.testing.assert_array_equal(actual, theirs(TopPLogitsWarper(p), logits_BV, dtype))
    logits = torch.tensor(logits_BV, dtype=getattr(torch, dtype))
    np.testing.assert_array_equal(actual, twin.top_p(logits, p).numpy())


@DTYPES
@examples
@given(logits_BV=drawn_logits(), p=st.floats(0.0, 1.0) | st.sampled_from([0.0, 0.5, 1.0]))
def test_min_p_is_transformers_and_the_twin(dtype, logits_BV, p):
    probability_BV = probabilities(logits_BV)
    assume_clear(probability_BV - p * probability_BV.max(axis=-1, keepdims=True), dtype)
    actual = ours(sampling.min_p, logits_BV, dtype, p)
    np.testing.assert_array_equal(actual, theirs(MinPLogitsWarper(p), logits_BV, dtype))
    logits = torch.tensor(logits_BV, dtype=getattr(torch, dtype))
    np.testing.assert_array_equal(actual, twin.min_p(logits, p).numpy())


@DTYPES
@examples
@given(logits_BV=drawn_logits(), penalty=st.floats(0.5, 3.0), data=st.data())
def test_repetition_penalty_is_transformers_and_the_twin(dtype, logits_BV, penalty, data):
    B, V = logits_BV.shape
    seen = data.draw(arrays(np.int64, (B, 4), elements=st.integers(0, V - 1)))
    seen_BV = np.zeros((B, V), bool)
    np.put_along_axis(seen_BV, seen, True, axis=-1)

    actual = ours(sampling.repetition_penalty, logits_BV, dtype, seen_BV, penalty)
    expected = theirs(RepetitionPenaltyLogitsProcessor(penalty), logits_BV, dtype, seen)
    assert_equal_to_rounding(actual, expected, dtype)
    logits = torch.tensor(logits_BV, dtype=getattr(torch, dtype))
    expected = twin.repetition_penalty(logits, torch.tensor(seen_BV), penalty).numpy()
    assert_equal_to_rounding(actual, expected, dtype)


configs = st.fixed_dictionaries(
    {
        "repetition_penalty": st.sampled_from([1.0, 0.8, 1.3]),
        "temperature": st.sampled_from([0.0, 0.3, 1.0, 1.7]),
        "top_k": st.none() | st.integers(1, 20),
        "top_p": st.none() | st.floats(0.05, 0.95),
        "min_p": st.none() | st.floats(0.01, 0.5),
    }
)


def random_rows(seed, B=16, V=24):
    """Logits, Gumbel noise and the ids seen so far."""
    rng = np.random.default_rng(seed)
    return rng.normal(0, 2, (B, V)), rng.gumbel(size=(B, V)), rng.integers(0, V, (B, 5))


@examples
@given(fields=configs, seed=st.integers(0, 2**32 - 1))
def test_filters_apply_in_the_order_of_transformers(fields, seed):
    logits_BV, _, seen = random_rows(seed)
    seen_BV = np.zeros(logits_BV.shape, bool)
    np.put_along_axis(seen_BV, seen, True, axis=-1)
    config = SamplingConfig(**fields)
    actual = ours(sampling.filter_logits, logits_BV, "float64", seen_BV, config)

    processors = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(config.repetition_penalty)])
    if config.temperature != 0:
        processors.append(TemperatureLogitsWarper(config.temperature))
        if config.top_k is not None:
            processors.append(TopKLogitsWarper(config.top_k))
        if config.top_p is not None:
            processors.append(TopPLogitsWarper(config.top_p))
        if config.min_p is not None:
            processors.append(MinPLogitsWarper(config.min_p))
    expected = theirs(processors, logits_BV, "float64", seen)
    np.testing.assert_array_equal(np.isinf(actual), np.isinf(expected))
    assert_equal_to_rounding(actual, expected, "float64")


@examples
@given(fields=configs, seed=st.integers(0, 2**32 - 1), ties=st.booleans())
def test_twin_draws_the_same_tokens_from_the_same_noise(fields, seed, ties):
    logits_BV, noise_BV, seen = random_rows(seed)
    logits_BV = np.round(logits_BV) if ties else logits_BV
    seen_BV = np.zeros(logits_BV.shape, bool)
    np.put_along_axis(seen_BV, seen, True, axis=-1)

    config = SamplingConfig(**fields)
    actual = ours(sampling.select_token, logits_BV, "float64", seen_BV, config, noise_BV)
    config = torchref.config.SamplingConfig(**fields)
    rows = torch.tensor(logits_BV), torch.tensor(seen_BV), config, torch.tensor(noise_BV)
    np.testing.assert_array_equal(actual, twin.select_token(*rows).numpy())
