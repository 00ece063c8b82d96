"""Cached decoding equals uncached, is independent of the batch, is compiled once per bucket.

Neither the steps of a dispatch nor the buckets of the cache affect a token."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxformer.config import GPTConfig, SamplingConfig
from jaxformer.decoding.generate import Dispatch, generate, truncate_context
from jaxformer.decoding.reference import generate_uncached, logits_after
from jaxformer.decoding.sampling import gumbel_noise
from jaxformer.decoding.state import decode, prefill, row_keys
from jaxformer.errors import UserError
from jaxformer.models.functional import abstract_model, init_params
from jaxformer.models.gpt import GPT
from jaxformer.models.stacked import stack_layers

T = 13
CONFIG = GPTConfig(
    vocab_size=23,
    context_length=T,
    width=10,
    num_heads=2,
    mlp_width=17,
    num_layers=1,
    init_std=0.5,
    dtype="float64",
)
GREEDY = SamplingConfig(temperature=0)
FILTERED = SamplingConfig(temperature=0.8, top_k=9, top_p=0.9, min_p=0.01, repetition_penalty=1.2)


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture
def model():
    """Graph and parameters."""
    return abstract_model(GPT, CONFIG)[0], init_params(GPT, CONFIG, jax.random.key(0))


def prompts_of(*lengths, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, CONFIG.vocab_size, length) for length in lengths]


def text(model, prompts, function=generate, config=CONFIG, **options):
    """All new tokens, (B, steps)."""
    return np.stack(list(function(*model, config, prompts, **options)), axis=1)


@pytest.mark.parametrize("sampling", [GREEDY, FILTERED])
@pytest.mark.parametrize("lengths", [(1,), (3, 7, T)])
def test_cached_tokens_are_the_uncached(model, sampling, lengths):
    options = {"max_new_tokens": 3 * T, "sampling": sampling, "seed": 4}
    cached = text(model, prompts_of(*lengths), **options)
    uncached = text(model, prompts_of(*lengths), generate_uncached, **options)
    np.testing.assert_array_equal(cached, uncached)


@pytest.mark.parametrize("sampling", [GREEDY, FILTERED])
def test_a_row_does_not_depend_on_the_rows_beside_it(model, sampling):
    prompts = prompts_of(5, 2, T, 9)
    together = text(model, prompts, max_new_tokens=2 * T, sampling=sampling)
    others = prompts[:2] + prompts_of(1, 3, seed=1)
    beside_others = text(model, others, max_new_tokens=2 * T, sampling=sampling)
    np.testing.assert_array_equal(together[:2], beside_others[:2])
    alone = text(model, prompts[:1], max_new_tokens=2 * T, sampling=sampling)
    np.testing.assert_array_equal(together[:1], alone)


def test_equal_seeds_give_equal_texts_and_rows_draw_their_own(model):
    prompts = prompts_of(4) * 2
    first = text(model, prompts, max_new_tokens=T, seed=1)
    np.testing.assert_array_equal(first, text(model, prompts, max_new_tokens=T, seed=1))
    assert not np.array_equal(first, text(model, prompts, max_new_tokens=T, seed=2))
    assert not np.array_equal(first[0], first[1])


def test_fewer_steps_give_the_beginning_of_the_text(model):
    long = text(model, prompts_of(5, 6), max_new_tokens=12)
    np.testing.assert_array_equal(text(model, prompts_of(5, 6), max_new_tokens=5), long[:, :5])


def test_a_model_of_scanned_layers_decodes_the_same_tokens():
    """Prefill and decoding take the layers one by one, each with its cache."""
    config = dataclasses.replace(CONFIG, num_layers=2)
    scanned = dataclasses.replace(config, scan_layers=True)
    params = init_params(GPT, config, jax.random.key(0))
    forms = [(config, params), (scanned, stack_layers(params))]
    texts = [
        text(
            (abstract_model(GPT, form)[0], tree),
            prompts_of(3, 5),
            config=form,
            max_new_tokens=T,
            sampling=GREEDY,
        )
        for form, tree in forms
    ]
    np.testing.assert_array_equal(*texts)


@pytest.mark.parametrize("lengths", [(1,), (3, 7, 2)])
@pytest.mark.parametrize(("max_steps", "min_cache_length"), [(1, 1), (3, 1), (5, 4), (32, 16)])
def test_tokens_do_not_depend_on_the_dispatch(model, lengths, max_steps, min_cache_length):
    """Texts cross every bucket of the cache, and are truncated twice."""
    dispatch = Dispatch(max_steps, math.inf, min_cache_length)
    options = {"max_new_tokens": 25, "sampling": FILTERED, "seed": 4}
    uncached = text(model, prompts_of(*lengths), generate_uncached, **options)
    for count in (25, 6):
        tokens = text(
            model, prompts_of(*lengths), dispatch=dispatch, **options | {"max_new_tokens": count}
        )
        np.testing.assert_array_equal(tokens, uncached[:, :count])


def test_the_first_token_waits_for_no_other(model, monkeypatch):
    monkeypatch.setattr("jaxformer.decoding.generate.decode", None)
    stream = generate(*model, CONFIG, prompts_of(3, 4), max_new_tokens=10**9)
    assert next(stream).shape == (2,)


def test_a_dispatch_has_the_steps_of_its_time():
    dispatch = Dispatch(max_steps=32, seconds=0.1)
    paces = [(1, 0.05), (2, 0.05), (4, 0.4), (4, 9.0), (1, 1e-4)]
    assert [dispatch.next_steps(*pace) for pace in paces] == [2, 4, 1, 1, 32]
    assert dispatch._replace(seconds=math.inf).next_steps(1, 9.0) == 32


def test_prefill_and_decode_are_compiled_once_per_bucket(model):
    prefill.clear_cache()
    decode.clear_cache()
    for lengths in [(5, 2), (8, 8), (6, 7)]:
        text(model, prompts_of(*lengths), max_new_tokens=5, sampling=GREEDY)
    assert (prefill._cache_size(), decode._cache_size()) == (1, 1)
    dispatch = Dispatch(min_cache_length=4)
    text(model, prompts_of(3, 4), max_new_tokens=9, sampling=GREEDY, dispatch=dispatch)
    # Caches of 4 slots at first, then of 8 and 13; those of 13 were there already.
    assert (prefill._cache_size(), decode._cache_size()) == (2, 2)


def test_windows_are_prefilled_only_at_first_and_where_one_is_truncated(model, monkeypatch):
    calls = []

    def prefilled(*arguments):
        calls.append(arguments[3].shape)
        return prefill(*arguments)

    def decoded(*arguments):
        calls.append(arguments[4])
        return decode(*arguments)

    monkeypatch.setattr("jaxformer.decoding.generate.prefill", prefilled)
    monkeypatch.setattr("jaxformer.decoding.generate.decode", decoded)
    dispatch = Dispatch(max_steps=3, seconds=math.inf)
    text(model, prompts_of(3, 9), max_new_tokens=10, sampling=GREEDY, dispatch=dispatch)
    # The fifth token is the longer row's 14th: both windows are prefilled again after it.
    assert calls == [(2, T), 1, 3, (2, 8), 3, 1]


@pytest.mark.parametrize("context", [1, 3])
def test_the_shortest_contexts_are_truncated_too(context):
    config = GPTConfig(
        vocab_size=5, context_length=context, width=4, num_heads=1, mlp_width=4, num_layers=1
    )
    model = abstract_model(GPT, config)[0], init_params(GPT, config, jax.random.key(0))
    prompt = [np.array([3])]
    cached = text(model, prompt, config=config, max_new_tokens=7, sampling=GREEDY)
    uncached = text(model, prompt, generate_uncached, config, max_new_tokens=7, sampling=GREEDY)
    np.testing.assert_array_equal(cached, uncached)


def test_bfloat16_models_draw_from_float32_logits():
    config = dataclasses.replace(CONFIG, dtype="bfloat16")
    model = abstract_model(GPT, config)[0], init_params(GPT, config, jax.random.key(0))
    logits_BV = logits_after(*model, np.array([[3, 4]]), np.array([2]))
    noise_BV = gumbel_noise(row_keys(0, 1), 0, jnp.zeros((1, CONFIG.vocab_size), jnp.float32))
    expected = jnp.argmax(logits_BV.astype(jnp.float32) + noise_BV, axis=-1)
    assert logits_BV.dtype == jnp.bfloat16
    tokens = text(model, [np.array([3, 4])], config=config, max_new_tokens=1)
    np.testing.assert_array_equal(tokens[:, 0], expected)


def test_the_penalty_remembers_tokens_that_left_the_window(model):
    # So strong a penalty lets no token come twice until all have come.
    sampling = SamplingConfig(temperature=0, repetition_penalty=1e9)
    tokens = text(model, prompts_of(1), max_new_tokens=CONFIG.vocab_size - 1, sampling=sampling)
    assert len(set(tokens[0].tolist())) > T  # more different tokens than a window holds


@settings(deadline=None)
@given(length=st.integers(1, 40), context=st.integers(1, 20))
def test_truncation_keeps_the_newest_half_of_a_window_that_is_too_long(length, context):
    window = list(range(length))
    kept = truncate_context(window, context)
    assert kept == (window if length <= context else window[length - (context + 1) // 2 :])
    assert 1 <= len(kept) <= context


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([], {}, "no prompt"),
        ([[1], []], {}, "prompt is empty"),
        ([[1]], {"max_new_tokens": 0}, "max-new-tokens 0"),
        ([[1]], {"seed": -1}, "seed -1"),
        ([[1]], {"seed": 2**32}, "seed 4294967296"),
    ],
)
def test_bad_input_is_refused_before_the_first_token(model, prompts, options, message):
    with pytest.raises(UserError, match=message):
        generate(*model, CONFIG, prompts, **{"max_new_tokens": 4, **options})
