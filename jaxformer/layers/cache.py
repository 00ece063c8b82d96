"""The key-value cache of decoding, one per attention layer: a pytree that is passed along.

Slot p of a row holds the key and value of that row's token at position p. Rows may be at different
positions; slots beyond a row's position are masked and overwritten as the row grows. The heads come
before the slots, as the products of attention read them, so that a batch's step copies no cache.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxformer.config import LayerConfig


class KVCache(NamedTuple):
    """Keys and values of one attention layer; of grouped queries the H is G."""

    k_BHMK: Float[Array, "B H M K"]
    v_BHMK: Float[Array, "B H M K"]


class DecoderCache(NamedTuple):
    """Keys and values of one decoder block."""

    own: KVCache
    """Of the target tokens so far."""
    memory: KVCache
    """Of the encoder's output; constant during decoding."""


def init_cache(config: LayerConfig, batch_size: int, length: int) -> list[KVCache]:
    """N caches of `length` slots for each of `batch_size` rows, all zero."""
    shape = (batch_size, config.num_kv_heads, length, config.head_width)
    blocks = range(config.num_layers)  # arrays of their own, since all may be donated
    return [
        KVCache(
            jnp.zeros(shape, config.precision.compute), jnp.zeros(shape, config.precision.compute)
        )
        for _ in blocks
    ]


def write_cache(cache: KVCache, new: KVCache, positions: Int[Array, "#B L"]) -> KVCache:
    """The cache with the new keys and values in the slots of their positions."""
    rows = jnp.arange(new.k_BHMK.shape[0])[:, None]

    def write(cache_BHMK: Array, new_BHLK: Array) -> Array:
        return cache_BHMK.at[rows, :, positions].set(new_BHLK.swapaxes(1, 2))

    return KVCache(*map(write, cache, new))


def cache_slots(cache: KVCache) -> Int[Array, "1 M"]:
    """The position of each slot."""
    return jnp.arange(cache.k_BHMK.shape[2])[None]
