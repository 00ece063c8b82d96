"""Bugs planted in the cache, the sampling filters and the window of a GPT."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxformer.decoding import generate, sampling
from jaxformer.layers import attention
from jaxformer.layers.cache import KVCache
from jaxformer.models import gpt
from jaxformer.parity.engine.mutation import Bug, patched
from jaxformer.parity.proofs.decoding import prove_cache, prove_generate, prove_sampling


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
        patched(
            generate,
            "truncate_context",
            lambda f: lambda window, T: f(window, T) if len(window) <= T else f(window, T)[1:],
        ),
        prove_generate,
    ),
]
