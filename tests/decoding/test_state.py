"""The decoding state: rows that join a running batch decode as they do alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.config import GPTConfig, SamplingConfig
from jaxformer.decoding.generate import generate, truncate_context
from jaxformer.decoding.prompts import pad_prompts
from jaxformer.decoding.state import (
    decode,
    grow,
    init_state,
    insert,
    next_logits,
    prefill,
    row_keys,
    step,
)
from jaxformer.models.functional import abstract_model, init_params, merge
from jaxformer.models.gpt import GPT
from jaxformer.parity.bounds import BOUNDS
from jaxformer.porting.compare import relative_error

T = 13
CONFIG = GPTConfig(
    vocab_size=23,
    context_length=T,
    width=10,
    num_heads=2,
    mlp_width=17,
    num_layers=2,
    init_std=0.5,
    dtype="float64",
)
SAMPLING = SamplingConfig(temperature=0.8, top_k=9, repetition_penalty=1.2)
SEED = 7


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture
def model():
    """Graph definition and parameters."""
    return abstract_model(GPT, CONFIG)[0], init_params(GPT, CONFIG, jax.random.key(0))


def prompts_of(*lengths):
    rng = np.random.default_rng(0)
    return [rng.integers(0, CONFIG.vocab_size, length).tolist() for length in lengths]


def test_rows_inserted_at_different_times_decode_as_they_do_alone(model):
    """Five requests in three slots; a request starts when a slot is free, two steps apart."""
    prompts, new_tokens = prompts_of(3, 9, T, 1, 6), [20, 7, 12, 9, 11]
    keys = row_keys(SEED, len(prompts))
    state = init_state(CONFIG, [[]] * 3, row_keys(0, 3), T)
    waiting, slots = list(range(len(prompts))), dict.fromkeys(range(3))
    windows, texts = [list(prompt) for prompt in prompts], [[] for _ in prompts]

    def enter(state, slot, row):
        """Prefill a row in a cache as short as its prompt allows, and insert it."""
        tokens_BL, lengths_B = pad_prompts([windows[row]], T)
        alone = init_state(CONFIG, [prompts[row] + texts[row]], keys[row][None], tokens_BL.shape[1])
        alone = alone._replace(steps=jnp.array([len(texts[row])], jnp.int32))
        alone = prefill(*model, alone, tokens_BL, lengths_B, SAMPLING)
        return insert(state, alone, jnp.array([slot]))

    time = 0
    while waiting or any(row is not None for row in slots.values()):
        state = step(*model, state, SAMPLING)
        for slot, row in slots.items():
            if row is None and waiting and time % 2 == 0:
                slots[slot] = row = waiting.pop(0)
                state = enter(state, slot, row)
            elif row is not None and truncate_context(windows[row], T) != windows[row]:
                windows[row] = truncate_context(windows[row], T)
                state = enter(state, slot, row)
        for slot, token in enumerate(np.array(state.last_tokens).tolist()):
            if (row := slots[slot]) is not None:
                texts[row].append(token)
                windows[row].append(token)
                if len(texts[row]) == new_tokens[row]:
                    slots[slot] = None
        time += 1

    for row, (prompt, count) in enumerate(zip(prompts, new_tokens, strict=True)):
        options = {"max_new_tokens": count, "sampling": SAMPLING, "seed": SEED, "first_row": row}
        alone = generate(*model, CONFIG, [np.array(prompt)], **options)
        assert texts[row] == np.concatenate(list(alone)).tolist()


def test_steps_of_one_dispatch_are_single_steps(model):
    """The tokens, and the state that the next step continues."""
    prompts = prompts_of(3, 5)
    state = init_state(CONFIG, prompts, row_keys(SEED, 2), T)
    state = prefill(*model, state, *pad_prompts(prompts, T), SAMPLING)
    together, tokens_tB = decode(*model, jax.tree.map(jnp.copy, state), SAMPLING, 4, 6)
    for tokens_B in tokens_tB[:4]:
        state = step(*model, state, SAMPLING)
        np.testing.assert_array_equal(tokens_B, state.last_tokens)
    assert tokens_tB.shape == (6, 2)
    for name in ("last_tokens", "positions", "seen", "keys", "steps"):
        assert (getattr(together, name) == getattr(state, name)).all(), name
    for ours, theirs in zip(*map(jax.tree.leaves, (together.caches, state.caches)), strict=True):
        assert relative_error(np.array(ours), np.array(theirs)) <= BOUNDS["layer", "float64"]


def test_caches_grown_to_the_next_bucket_give_the_logits_of_whole_ones(model):
    prompts = prompts_of(4, 2)
    rows = [
        prefill(
            *model,
            init_state(CONFIG, prompts, row_keys(SEED, 2), length),
            *pad_prompts(prompts, T),
            SAMPLING,
        )
        for length in (4, T)
    ]
    rows[0] = grow(rows[0], 8)
    logits = [
        next_logits(merge(*model), state.last_tokens, state.positions, state.caches)[0]
        for state in rows
    ]
    assert relative_error(*map(np.array, logits)) <= BOUNDS["model", "float64"]


def test_only_the_slots_given_are_written(model):
    prompts = prompts_of(3, 5, 4)
    state = init_state(CONFIG, prompts, row_keys(SEED, 3), T)
    state = prefill(*model, state, *pad_prompts(prompts, T), SAMPLING)
    before = jax.tree.map(jnp.copy, state)
    rows = init_state(CONFIG, prompts_of(2, 2), row_keys(1, 2), 4)
    new = jax.tree.map(jnp.copy, rows)
    after = insert(state, rows, jnp.array([2, 0]))
    for old, given, found in zip(*map(jax.tree.leaves, (before, new, after)), strict=True):
        assert (found[1] == old[1]).all()
        part = (slice(None), *map(slice, given.shape[1:]))
        assert (found[jnp.array([2, 0])][part] == given).all()
        assert found.shape == old.shape
