"""Text from a language model, token by token, with a key-value cache.

A row's text grows; its *window* is the part of it that the model reads. While the text fits into
context_length tokens, the window is all of it. If a token is added to a full window, the window
keeps only the last (context_length + 1) // 2 tokens, including the new one, and grows again.

A batch of windows is padded on the right to a bucket, the next power of two, and prefilled at once;
then each step reads one token per row, each row at its own position. A truncated window has new
positions, so all rows are then prefilled from their windows.

The first token comes from `prefill`, later ones by several steps per dispatch, one call of a
compiled program. Attention reads the caches to their end, so their length is a bucket too: that of
the longest window, not the context. `prefill` is compiled once per bucket of windows, `decode` once
per bucket of caches.
"""

import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from flax import nnx
from jaxtyping import Array, Int, Key, PyTree

from jaxformer.config import ModelConfig, SamplingConfig
from jaxformer.decoding.prompts import cache_length, pad_prompts, validate_prompts
from jaxformer.decoding.state import decode, grow, init_state, prefill, row_keys
from jaxformer.errors import UserError


class Dispatch(NamedTuple):
    """How decoding is divided into dispatches. No token depends on it."""

    max_steps: int = 32
    """Steps of a dispatch, at most."""
    seconds: float = 0.1
    """Time of a dispatch, roughly: text appears, and a stop string is noticed, at its end."""
    min_cache_length: int = 128
    """The smallest bucket of caches; each bucket is a compilation."""

    def next_steps(self, steps: int, seconds: float) -> int:
        """Steps that take the time of a dispatch, at the pace of the last one."""
        return int(min(self.max_steps, max(1, steps * self.seconds / seconds)))


def truncate_context(window: list[int], context_length: int) -> list[int]:
    """The window, or its newest half if it is longer than the context."""
    return window if len(window) <= context_length else window[-((context_length + 1) // 2) :]


def generate(
    graphdef: nnx.GraphDef,
    params: PyTree[Array],
    config: ModelConfig,
    prompts: Sequence[Int[np.ndarray, "_"]],
    *,
    max_new_tokens: int,
    sampling: SamplingConfig | None = None,
    seed: int = 0,
    first_row: int = 0,
    dispatch: Dispatch = Dispatch(),  # noqa: B008  immutable
) -> Iterator[Int[np.ndarray, " B"]]:
    """Continue each prompt; yields the new token of every row, step by step.

    The iterator may be dropped at any step, for instance when every row has met its stop string.

    Args:
        graphdef: of the model, see jaxformer.models.functional.
        params: its parameters.
        config: its config.
        prompts: token ids, one array per row, of 1 to context_length tokens.
        max_new_tokens: number of steps.
        sampling: the filters; by default tokens are samples of the model's own distribution.
        seed: of the noise.
        first_row: number of the first prompt, for texts that are generated in several batches.
        dispatch: how many steps and slots of the caches a dispatch has.

    Raises UserError, before anything is computed, for prompts that the model cannot read: none at
    all, empty, too long, or with ids outside the vocabulary.
    """
    windows = validate_request(prompts, config, max_new_tokens, seed)
    keys_B, sampling = row_keys(seed, len(windows), first_row), sampling or SamplingConfig()
    return _generate(graphdef, params, config, windows, max_new_tokens, sampling, keys_B, dispatch)


def _generate(
    graphdef: nnx.GraphDef,
    params: PyTree[Array],
    config: ModelConfig,
    windows: list[list[int]],
    max_new_tokens: int,
    sampling: SamplingConfig,
    keys_B: Key[Array, " B"],
    dispatch: Dispatch,
) -> Iterator[Int[np.ndarray, " B"]]:
    T = config.context_length
    longest = max(map(len, windows))
    M = cache_length(longest, dispatch.min_cache_length, T)
    state = init_state(config, windows, keys_B, length=M)
    steps, truncated = 1, True  # the first windows are prefilled like truncated ones
    while max_new_tokens:
        if truncated:
            state = prefill(graphdef, params, state, *pad_prompts(windows, T), sampling)
            tokens_tB = np.array(state.last_tokens)[None]
        else:
            if longest > M:
                M = cache_length(longest, dispatch.min_cache_length, T)
                state = grow(state, M)
            # The last token of the longest window takes slot longest - 1.
            count = min(steps, max_new_tokens, M + 1 - longest)
            start = time.perf_counter()
            state, tokens_tB = decode(graphdef, params, state, sampling, count, dispatch.max_steps)
            tokens_tB = np.array(tokens_tB)[:count]
            steps = dispatch.next_steps(count, time.perf_counter() - start)
        yield from tokens_tB
        max_new_tokens -= len(tokens_tB)
        grown = [[*window, *new] for window, new in zip(windows, tokens_tB.T.tolist(), strict=True)]
        windows = [truncate_context(window, T) for window in grown]
        truncated, longest = windows != grown, max(map(len, windows))


def validate_request(
    prompts: Sequence[Int[np.ndarray, "_"]], config: ModelConfig, max_new_tokens: int, seed: int
) -> list[list[int]]:
    """The prompts as lists; UserError for what cannot be generated."""
    if max_new_tokens < 1:
        raise UserError(f"max-new-tokens {max_new_tokens} writes nothing: choose 1 or more")
    if not 0 <= seed < 2**32:
        raise UserError(f"seed {seed} is out of range: choose one from 0 to 4294967295")
    return [prompt.tolist() for prompt in validate_prompts(prompts, config)]
