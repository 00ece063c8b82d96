"""The decoding of a language model as a state: rows, each at its own place in its own text.

    state = init_state(config, prompts, row_keys(seed, len(prompts)), length)
    state = prefill(graphdef, params, state, *pad_prompts(prompts, length), sampling)
    state = step(graphdef, params, state, sampling)

`prefill` reads a prompt per row into the caches and samples the token that follows it; `step` reads
the last token of every row and samples the next one. Both return the new state, whose last tokens
are the sampled ones. `decode` takes several steps in one dispatch. `insert` puts prefilled rows
into slots of a running state: a server reuses the slot of a finished request while the other rows
continue. All four donate the state they are given. `grow` gives the caches more slots.

Rows do not affect each other. Padding leaves keys and values beyond its row's position, where they
are masked until the row's own tokens overwrite them. `step` does not notice the end of a row's
cache or of the context: the caller stops the row there, or truncates its text and prefills it again
as `generate` does.

The noise of token t of a row depends only on fold_in(key of the row, t). A text therefore depends,
to rounding, only on its prompt and its key.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from jaxformer.config import ModelConfig, SamplingConfig
from jaxformer.decoding.sampling import gumbel_noise, select_token
from jaxformer.layers.cache import KVCache, init_cache
from jaxformer.layers.precision import upcast
from jaxformer.models.functional import merge


class DecodeState(NamedTuple):
    """All that the next tokens of B rows depend on, besides the parameters."""

    caches: list[KVCache]
    """Keys and values of the tokens read so far, (B, G, M, K) per block."""
    last_tokens: Int[Array, " B"]
    """The token sampled last in each row, which is not in the caches yet."""
    positions: Int[Array, " B"]
    """Its position, and so its slot in the caches."""
    seen: Bool[Array, "B V"]
    """True at the tokens of each text, for the repetition penalty."""
    keys: Key[Array, " B"]
    """From which the noise of each row is drawn."""
    steps: Int[Array, " B"]
    """Tokens sampled so far in each row."""


def init_state(
    config: ModelConfig, texts: Sequence[Sequence[int]], keys_B: Key[Array, " B"], length: int
) -> DecodeState:
    """Rows of these texts with nothing read yet, and caches of `length` slots.

    Empty texts make a state into which rows can be inserted.
    """
    B = len(texts)
    return DecodeState(
        caches=init_cache(config, B, length),
        last_tokens=jnp.zeros(B, jnp.int32),
        positions=jnp.zeros(B, jnp.int32),
        seen=jnp.asarray(seen_tokens(texts, config.vocab_size)),
        keys=jnp.copy(keys_B),
        steps=jnp.zeros(B, jnp.int32),
    )


def row_keys(seed: int, batch_size: int, first_row: int = 0) -> Key[Array, " B"]:
    """The key of each row: fold_in(key(seed), b), b counted from `first_row`."""
    rows = first_row + jnp.arange(batch_size)
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), rows)


def seen_tokens(texts: Sequence[Sequence[int]], vocab_size: int) -> Bool[np.ndarray, "B V"]:
    """True at the tokens of each text."""
    seen_BV = np.zeros((len(texts), vocab_size), bool)
    for row, text in enumerate(texts):
        seen_BV[row, list(text)] = True
    return seen_BV


@functools.partial(jax.jit, static_argnames=("graphdef", "sampling"), donate_argnames="state")
def prefill(
    graphdef: nnx.GraphDef,
    params: PyTree[Array],
    state: DecodeState,
    tokens_BL: Int[Array, "B L"],
    lengths_B: Int[Array, " B"],
    sampling: SamplingConfig,
) -> DecodeState:
    """Read the first `lengths` tokens of each row into slots 0, 1, ... and sample what follows."""
    model, (B, L) = merge(graphdef, params), tokens_BL.shape
    positions_BL = jnp.broadcast_to(jnp.arange(L), (B, L))
    hidden_BLD, caches = model.hidden(tokens_BL, caches=state.caches, positions=positions_BL)
    logits_BV = model.logits(hidden_BLD[jnp.arange(B), lengths_B - 1])
    return _sample_next(state._replace(caches=caches, positions=lengths_B), logits_BV, sampling)


@functools.partial(jax.jit, static_argnames=("graphdef", "sampling"), donate_argnames="state")
def step(
    graphdef: nnx.GraphDef, params: PyTree[Array], state: DecodeState, sampling: SamplingConfig
) -> DecodeState:
    """Read the last token of each row and sample the next one."""
    model = merge(graphdef, params)
    logits_BV, caches = next_logits(model, state.last_tokens, state.positions, state.caches)
    grown = state._replace(caches=caches, positions=state.positions + 1)
    return _sample_next(grown, logits_BV, sampling)


@functools.partial(
    jax.jit, static_argnames=("graphdef", "sampling", "max_steps"), donate_argnames="state"
)
def decode(
    graphdef: nnx.GraphDef,
    params: PyTree[Array],
    state: DecodeState,
    sampling: SamplingConfig,
    count: Int[Array, ""] | int,
    max_steps: int,
) -> tuple[DecodeState, Int[Array, "_ B"]]:
    """`count` steps, at most `max_steps`, and the token of each: one program for every count.

    Tokens of the steps that are not taken are 0.
    """

    def body(
        t: Int[Array, ""] | int, carry: tuple[DecodeState, Array]
    ) -> tuple[DecodeState, Array]:
        state = step(graphdef, params, carry[0], sampling)
        return state, carry[1].at[t].set(state.last_tokens)

    tokens_tB = jnp.zeros((max_steps, len(state.last_tokens)), jnp.int32)
    return jax.lax.fori_loop(0, count, body, (state, tokens_tB))


def grow(state: DecodeState, length: int) -> DecodeState:
    """The state with caches of `length` slots, the new ones zero; copies the caches."""

    def pad(cache_BHMK: Array) -> Array:
        return jnp.pad(cache_BHMK, ((0, 0), (0, 0), (0, length - cache_BHMK.shape[2]), (0, 0)))

    return state._replace(caches=jax.tree.map(pad, state.caches))


@functools.partial(jax.jit, donate_argnames="state")
def insert(state: DecodeState, rows: DecodeState, slots: Int[Array, " S"]) -> DecodeState:
    """The state with these rows in the given slots; their caches may be shorter than its own."""

    def put(old: Array, new: Array) -> Array:
        return old.at[(slots, *map(slice, new.shape[1:]))].set(new)

    return jax.tree.map(put, state, rows)


def next_logits(
    model: Any,
    tokens_B: Int[Array, " B"],
    positions_B: Int[Array, " B"],
    caches: list[KVCache],
) -> tuple[Float[Array, "B V"], list[KVCache]]:
    """Logits of the token after each given one, and the caches with the given ones added."""
    hidden_B1D, caches = model.hidden(
        tokens_B[:, None], caches=caches, positions=positions_B[:, None]
    )
    return model.logits(hidden_B1D[:, 0]), caches


def _sample_next(
    state: DecodeState, logits_BV: Float[Array, "B V"], sampling: SamplingConfig
) -> DecodeState:
    tokens_B = sample_token(logits_BV, state.seen, sampling, state.keys, state.steps)
    return state._replace(
        last_tokens=tokens_B.astype(jnp.int32),
        seen=state.seen.at[jnp.arange(len(tokens_B)), tokens_B].set(True),
        steps=state.steps + 1,
    )


@functools.partial(jax.jit, static_argnames="sampling")
def sample_token(
    logits_BV: Float[Array, "B V"],
    seen_BV: Bool[Array, "B V"],
    sampling: SamplingConfig,
    keys_B: Key[Array, " B"],
    steps: Int[Array, "..."] | int,
) -> Int[Array, " B"]:
    """The next token of each row, its noise drawn in the logits' type, float32 or wider."""
    logits_BV = upcast(logits_BV)
    return select_token(logits_BV, seen_BV, sampling, gumbel_noise(keys_B, steps, logits_BV))
