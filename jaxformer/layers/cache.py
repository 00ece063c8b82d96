"""The key-value cache of one attention layer, a pytree that decoding carries along.

Slot p of a row holds the key and value of that row's token at position p. Rows may be at different
positions; what lies beyond a row's position is never attended to and is overwritten in its turn.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxformer.config import BlockConfig


class KVCache(NamedTuple):
    """Keys and values seen so far."""

    k_BMHK: Float[Array, "B M H K"]
    v_BMHK: Float[Array, "B M H K"]


def init_cache(config: BlockConfig, batch_size: int, length: int) -> KVCache:
    """A cache of `length` slots for each of `batch_size` rows, all zero."""
    shape = (batch_size, length, config.num_heads, config.head_width)
    return KVCache(jnp.zeros(shape, config.dtype), jnp.zeros(shape, config.dtype))


def write_cache(
    cache: KVCache,
    k_BLHK: Float[Array, "B L H K"],
    v_BLHK: Float[Array, "B L H K"],
    positions: Int[Array, "B L"],
) -> KVCache:
    """The cache with the new keys and values in the slots of their positions."""
    rows = jnp.arange(positions.shape[0])[:, None]
    return KVCache(
        cache.k_BMHK.at[rows, positions].set(k_BLHK),
        cache.v_BMHK.at[rows, positions].set(v_BLHK),
    )
