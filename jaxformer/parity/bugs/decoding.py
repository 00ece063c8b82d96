"""Bugs planted in the cache, the sampling filters and the window of a GPT."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from jaxformer.decoding import generate, sampling, state
from jaxformer.layers import attention
from jaxformer.layers.cache import KVCache
from jaxformer.models import gpt
from jaxformer.parity.engine.cases import Case
from jaxformer.parity.engine.mutation import SMALL, Bug, Plant, patched
from jaxformer.parity.proofs.decoding import (
    prove_cache,
    prove_dispatch,
    prove_generate,
    prove_sampling,
)

# A seed at which each of these bugs changes some token.
DISPATCHED: Case = dataclasses.replace(SMALL, seed=2)


def top_p_short(logits: jax.Array, p: float) -> jax.Array:
    """Excludes the token that brings the sum to p."""
    order = jnp.argsort(-logits, axis=-1)
    probabilities = jnp.take_along_axis(jax.nn.softmax(logits), order, -1)
    kept = (jnp.cumsum(probabilities, -1) < p).at[:, 0].set(True)
    kept = jnp.put_along_axis(kept, order, kept, axis=-1, inplace=False)
    return jnp.where(kept, logits, -jnp.inf)


def multiplied(logits: jax.Array, seen: jax.Array, penalty: float) -> jax.Array:
    return jnp.where(seen, logits * penalty, logits)


def late(write: Callable[..., Any]) -> Callable[..., Any]:
    return lambda cache, new, positions: write(cache, new, positions + 1)


def one_token_short(truncate: Callable[..., Any]) -> Callable[..., Any]:
    return lambda window, T: truncate(window, T) if len(window) <= T else truncate(window, T)[1:]


def same_noise(step: Callable[..., Any]) -> Callable[..., Any]:
    return lambda graphdef, params, state, sampling: step(
        graphdef, params, state, sampling
    )._replace(steps=state.steps)


def same_position(step: Callable[..., Any]) -> Callable[..., Any]:
    return lambda graphdef, params, state, sampling: step(
        graphdef, params, state, sampling
    )._replace(positions=state.positions)


def one_late(decode: Callable[..., Any]) -> Callable[..., Any]:
    """Row t holds the token that step t reads, not the one it samples."""

    def made(graphdef: Any, params: Any, state: Any, *args: Any) -> Any:
        first = jnp.copy(state.last_tokens)  # decode donates the state
        state, tokens = decode(graphdef, params, state, *args)
        return state, jnp.roll(tokens, 1, axis=0).at[0].set(first)

    return made


def in_dispatch(make: Callable[[Any], Any]) -> Plant:
    """Changes `step` in `decode`, which is compiled with it and without it."""

    @contextlib.contextmanager
    def plant() -> Iterator[None]:
        decode: Any = state.decode
        decode.clear_cache()
        try:
            with patched(state, "step", make)():
                yield
        finally:
            decode.clear_cache()

    return plant


BUGS = [
    Bug(
        "cache written one slot late", "cache", patched(attention, "write_cache", late), prove_cache
    ),
    Bug(
        "cache read beyond the position",
        "cache",
        patched(gpt, "position_mask", lambda f: lambda q, k: f(q + 1, k)),
        prove_cache,
    ),
    Bug(
        "keys and values swapped in the cache",
        "cache",
        patched(
            attention,
            "write_cache",
            lambda f: lambda cache, new, p: f(cache, KVCache(*reversed(new)), p),
        ),
        prove_cache,
    ),
    Bug(
        "top-p one token short",
        "sampling",
        patched(sampling, "top_p", lambda _: top_p_short),
        prove_sampling,
    ),
    Bug(
        "top-k one token long",
        "sampling",
        patched(sampling, "top_k", lambda f: lambda x, k: f(x, k + 1)),
        prove_sampling,
    ),
    Bug(
        "repetition penalty multiplies positive logits",
        "sampling",
        patched(sampling, "repetition_penalty", lambda _: multiplied),
        prove_sampling,
    ),
    Bug(
        "noise not added to the logits",
        "sampling",
        patched(sampling, "sample", lambda _: lambda x, noise: x.argmax(-1)),
        prove_sampling,
    ),
    Bug(
        "truncated window one token short",
        "generate",
        patched(generate, "truncate_context", one_token_short),
        prove_generate,
    ),
    Bug(
        "noise of a dispatch's first step in all its steps",
        "generate",
        in_dispatch(same_noise),
        prove_dispatch,
        DISPATCHED,
    ),
    Bug(
        "tokens of a dispatch all at one position",
        "generate",
        in_dispatch(same_position),
        prove_dispatch,
        DISPATCHED,
    ),
    Bug(
        "tokens of a dispatch one step late",
        "generate",
        patched(generate, "decode", one_late),
        prove_dispatch,
        DISPATCHED,
    ),
    Bug(
        "bucket of the cache one slot short",
        "generate",
        patched(generate, "grow", lambda f: lambda state, length: f(state, length - 1)),
        prove_dispatch,
        DISPATCHED,
    ),
    Bug(
        "next bucket of the cache begins empty",
        "generate",
        patched(
            generate,
            "grow",
            lambda f: (
                lambda state, length: f(
                    state._replace(caches=jax.tree.map(jnp.zeros_like, state.caches)), length
                )
            ),
        ),
        prove_dispatch,
        DISPATCHED,
    ),
]
