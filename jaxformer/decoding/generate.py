"""Text from a GPT, token by token, with a key-value cache.

A row's text grows; its *window* is the part of it that the model reads. While the text fits into
context_length tokens, the window is all of it. If a token is added to a full window, the window
keeps only the last (context_length + 1) // 2 tokens, including the new one, and grows again.

A batch of windows is padded on the right to a bucket, the next power of two, and prefilled at once;
then each step reads one token per row, each row at its own position. A truncated window has new
positions, so all rows are then prefilled from their windows. `prefill` is compiled once per bucket,
`step` once.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from flax import nnx
from jaxtyping import Array, Int, Key, PyTree

from jaxformer.config import GPTConfig, SamplingConfig
from jaxformer.decoding.prompts import pad_prompts, validate_prompts
from jaxformer.decoding.state import init_state, prefill, row_keys, step
from jaxformer.errors import UserError


def truncate_context(window: list[int], context_length: int) -> list[int]:
    """The window, or its newest half if it is longer than the context."""
    return window if len(window) <= context_length else window[-((context_length + 1) // 2) :]


def generate(
    graphdef: nnx.GraphDef,
    params: PyTree[Array],
    config: GPTConfig,
    prompts: Sequence[Int[np.ndarray, "_"]],
    *,
    max_new_tokens: int,
    sampling: SamplingConfig | None = None,
    seed: int = 0,
    first_row: int = 0,
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

    Raises UserError, before anything is computed, for prompts that the model cannot read: none at
    all, empty, too long, or with ids outside the vocabulary.
    """
    windows = validate_request(prompts, config, max_new_tokens, seed)
    keys_B, sampling = row_keys(seed, len(windows), first_row), sampling or SamplingConfig()
    return _generate(graphdef, params, config, windows, max_new_tokens, sampling, keys_B)


def _generate(
    graphdef: nnx.GraphDef,
    params: PyTree[Array],
    config: GPTConfig,
    windows: list[list[int]],
    max_new_tokens: int,
    sampling: SamplingConfig,
    keys_B: Key[Array, " B"],
) -> Iterator[Int[np.ndarray, " B"]]:
    T = config.context_length
    state = init_state(config, windows, keys_B, length=T)
    truncated = True  # the first windows are prefilled like truncated ones
    for _ in range(max_new_tokens):
        if truncated:
            state = prefill(graphdef, params, state, *pad_prompts(windows, T), sampling)
        else:
            state = step(graphdef, params, state, sampling)
        tokens = np.array(state.last_tokens)
        yield tokens
        grown = [[*window, token] for window, token in zip(windows, tokens.tolist(), strict=True)]
        windows = [truncate_context(window, T) for window in grown]
        truncated = windows != grown


def validate_request(
    prompts: Sequence[Int[np.ndarray, "_"]], config: GPTConfig, max_new_tokens: int, seed: int
) -> list[list[int]]:
    """The prompts as lists; UserError for what cannot be generated."""
    if max_new_tokens < 1:
        raise UserError(f"max-new-tokens {max_new_tokens} writes nothing: choose 1 or more")
    if not 0 <= seed < 2**32:
        raise UserError(f"seed {seed} is out of range: choose one from 0 to 4294967295")
    return [prompt.tolist() for prompt in validate_prompts(prompts, config)]
