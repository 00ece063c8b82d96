"""The decoding state: rows that join a running batch decode as they do alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.config import GPTConfig, SamplingConfig
from jaxformer.decoding.generate import generate, truncate_context
from jaxformer.decoding.prompts import pad_prompts
from jaxformer.decoding.state import init_state, insert, prefill, row_keys, step
from jaxformer.models.functional import abstract_model, init_params
from jaxformer.models.gpt import GPT

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


def test_a_scan_of_steps_gives_the_tokens_of_single_steps(model):
    prompts = prompts_of(3, 5)
    state = init_state(CONFIG, prompts, row_keys(SEED, 2), T)
    state = prefill(*model, state, *pad_prompts(prompts, T), SAMPLING)
    first = np.array(state.last_tokens)

    def body(state, _):
        state = step(*model, state, SAMPLING)
        return state, state.last_tokens

    _, tokens = jax.lax.scan(body, state, length=6)
    expected = generate(
        *model, CONFIG, list(map(np.array, prompts)), max_new_tokens=7, sampling=SAMPLING, seed=SEED
    )
    np.testing.assert_array_equal(np.vstack([first, tokens]), np.stack(list(expected)))


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
