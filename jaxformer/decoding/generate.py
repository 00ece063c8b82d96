"""Text from a GPT, token by token: with a key-value cache, or without one as the plain reference.

A row's text grows; its *window* is the part of it that the model sees. While the text fits into
context_length tokens the window is all of it. When a token is added to a full window the window
slides: it keeps the last (context_length + 1) // 2 tokens, the new one among them, and grows again.

Cached decoding keeps the token at position p of a window in slot p of its row. A batch of windows
of different lengths is padded on the right to a bucket, the next power of two, and read at once;
then each step reads one token a row, every row at its own position. What padding leaves in the
cache lies beyond its row's position: it is never attended to, and overwritten in its turn. When a
window slides its tokens change positions, so all rows are read again from their windows. `advance`
is compiled once for each bucket and once for the single token, whatever the lengths.

The noise of row b at step t comes from fold_in(fold_in(key(seed), b), t) alone: a text depends,
to rounding, neither on the other rows nor on the bucket.
"""

import functools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from jaxformer.config import GPTConfig, SamplingConfig
from jaxformer.decoding.rows import bucket, checked_row
from jaxformer.decoding.sampling import gumbel_noise, next_token
from jaxformer.errors import UserError
from jaxformer.layers.cache import KVCache, init_cache
from jaxformer.models.functional import merge


def slide(window: list[int], context_length: int) -> list[int]:
    """The window itself, or the newest half of one that has outgrown the context."""
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
    """Continue each prompt, one token a step; yields the new token of every row as it is known.

    The iterator may be dropped at any step, for instance when every row has said its stop string.

    Args:
        graphdef: of the model, see jaxformer.models.functional.
        params: its parameters.
        config: its config.
        prompts: token ids, one array a row, of 1 to context_length tokens.
        max_new_tokens: steps.
        sampling: how tokens are drawn; by default from the model's own distribution.
        seed: of the draws.
        first_row: number of the first prompt, for texts that are made in several batches.

    Raises UserError, before anything is computed, for prompts the model cannot take: none at all,
    empty, too long, or with ids outside the vocabulary.
    """
    windows = _checked(prompts, config, max_new_tokens, seed)
    keys_B = row_keys(seed, len(prompts), first_row)
    return _generate(graphdef, params, config, windows, max_new_tokens, sampling, keys_B)


def _generate(
    graphdef: nnx.GraphDef,
    params: PyTree[Array],
    config: GPTConfig,
    windows: list[list[int]],
    max_new_tokens: int,
    sampling: SamplingConfig | None,
    keys_B: Key[Array, " B"],
) -> Iterator[Int[np.ndarray, " B"]]:
    B, T = len(windows), config.context_length
    caches = init_cache(config, B, T)
    seen_BV = jnp.asarray(seen_tokens(windows, config.vocab_size))
    must_read_all = True
    for step in range(max_new_tokens):
        tokens_BL, positions_BL, last_B = padded(windows, T) if must_read_all else newest(windows)
        tokens_B, caches, seen_BV = advance(
            graphdef,
            sampling or SamplingConfig(),
            params,
            tokens_BL,
            positions_BL,
            last_B,
            caches,
            seen_BV,
            keys_B,
            step,
        )
        tokens = np.asarray(tokens_B)
        yield tokens
        grown = [[*window, token] for window, token in zip(windows, tokens.tolist(), strict=True)]
        windows = [slide(window, T) for window in grown]
        must_read_all = windows != grown


@functools.partial(
    jax.jit, static_argnames=("graphdef", "sampling"), donate_argnames=("caches", "seen_BV")
)
def advance(
    graphdef: nnx.GraphDef,
    sampling: SamplingConfig,
    params: PyTree[Array],
    tokens_BL: Int[Array, "B L"],
    positions_BL: Int[Array, "B L"],
    last_B: Int[Array, " B"],
    caches: list[KVCache],
    seen_BV: Bool[Array, "B V"],
    keys_B: Key[Array, " B"],
    step: Int[Array, ""],
) -> tuple[Int[Array, " B"], list[KVCache], Bool[Array, "B V"]]:
    """Read tokens into the caches and choose what follows the one at index `last` of each row."""
    model = merge(graphdef, params)
    hidden_BLD, caches = model.hidden(tokens_BL, caches=caches, positions=positions_BL)
    rows = jnp.arange(len(last_B))
    logits_BV = model.logits(hidden_BLD[rows, last_B])
    tokens_B = choose(logits_BV, seen_BV, sampling, keys_B, step)
    return tokens_B, caches, seen_BV.at[rows, tokens_B].set(True)


def generate_uncached(
    graphdef: nnx.GraphDef,
    params: PyTree[Array],
    config: GPTConfig,
    prompts: Sequence[Int[np.ndarray, "_"]],
    *,
    max_new_tokens: int,
    sampling: SamplingConfig | None = None,
    seed: int = 0,
) -> Iterator[Int[np.ndarray, " B"]]:
    """What `generate` means, without a cache: the whole window through the model for each token."""
    windows = _checked(prompts, config, max_new_tokens, seed)
    seen_BV = seen_tokens(windows, config.vocab_size)
    keys_B = row_keys(seed, len(windows))
    for step in range(max_new_tokens):
        tokens_BL, _, last_B = padded(windows, config.context_length)
        logits_BV = logits_at(graphdef, params, tokens_BL, last_B)
        tokens_B = choose(logits_BV, seen_BV, sampling or SamplingConfig(), keys_B, step)
        tokens = np.asarray(tokens_B)
        yield tokens
        seen_BV[np.arange(len(tokens)), tokens] = True
        windows = [
            slide([*window, token], config.context_length)
            for window, token in zip(windows, tokens.tolist(), strict=True)
        ]


@functools.partial(jax.jit, static_argnames="graphdef")
def logits_at(
    graphdef: nnx.GraphDef,
    params: PyTree[Array],
    tokens_BL: Int[Array, "B L"],
    last_B: Int[Array, " B"],
) -> Float[Array, "B V"]:
    """Logits of what follows the token at index `last` of each row."""
    return merge(graphdef, params)(tokens_BL)[jnp.arange(len(last_B)), last_B]


@functools.partial(jax.jit, static_argnames="sampling")
def choose(
    logits_BV: Float[Array, "B V"],
    seen_BV: Bool[Array, "B V"],
    sampling: SamplingConfig,
    keys_B: Key[Array, " B"],
    step: Int[Array, ""],
) -> Int[Array, " B"]:
    """The next token of each row, its noise drawn in the logits' type, float32 or wider."""
    logits_BV = logits_BV.astype(jnp.promote_types(logits_BV.dtype, jnp.float32))
    return next_token(logits_BV, seen_BV, sampling, gumbel_noise(keys_B, step, logits_BV))


def row_keys(seed: int, batch_size: int, first_row: int = 0) -> Key[Array, " B"]:
    """The key of each row: fold_in(key(seed), b), b counted from `first_row`."""
    rows = first_row + jnp.arange(batch_size)
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), rows)


def seen_tokens(texts: Sequence[Sequence[int]], vocab_size: int) -> Bool[np.ndarray, "B V"]:
    """True at the tokens that each text holds."""
    seen_BV = np.zeros((len(texts), vocab_size), bool)
    for row, text in enumerate(texts):
        seen_BV[row, text] = True
    return seen_BV


def padded(
    windows: list[list[int]], context_length: int
) -> tuple[Int[np.ndarray, "B L"], Int[np.ndarray, "B L"], Int[np.ndarray, " B"]]:
    """Windows padded on the right to their bucket, their positions, the index of the last token."""
    length = min(bucket(max(map(len, windows))), context_length)
    tokens_BL = np.zeros((len(windows), length), np.int32)
    for row, window in enumerate(windows):
        tokens_BL[row, : len(window)] = window
    positions_BL = np.broadcast_to(np.arange(length, dtype=np.int32), tokens_BL.shape)
    return tokens_BL, positions_BL, np.array([len(window) - 1 for window in windows], np.int32)


def newest(
    windows: list[list[int]],
) -> tuple[Int[np.ndarray, "B 1"], Int[np.ndarray, "B 1"], Int[np.ndarray, " B"]]:
    """The last token of each window, its position, and its index here, which is 0."""
    tokens_B1 = np.array([[window[-1]] for window in windows], np.int32)
    positions_B1 = np.array([[len(window) - 1] for window in windows], np.int32)
    return tokens_B1, positions_B1, np.zeros(len(windows), np.int32)


def _checked(
    prompts: Sequence[Int[np.ndarray, "_"]], config: GPTConfig, max_new_tokens: int, seed: int
) -> list[list[int]]:
    if max_new_tokens < 1:
        raise UserError(f"max-new-tokens {max_new_tokens} writes nothing: choose 1 or more")
    if not 0 <= seed < 2**32:
        raise UserError(f"seed {seed} is out of range: choose one from 0 to 4294967295")
    if not len(prompts):
        raise UserError("there is no prompt: give at least one")
    return [checked_row(prompt, "prompt", config).tolist() for prompt in prompts]
