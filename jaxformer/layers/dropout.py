"""Keyed dropout (Srivastava et al. 2014) whose masks can be recomputed from key, step and path.

A model receives the key of its call, in training `slice_key(step_key(key, step), slice)`, and folds
in the path of each dropout: with the key of slice 0 (all of a batch that is not divided),
`keep_mask(fold_path(slice_key, "blocks", 3, "mlp_dropout"), ...)` is the mask of block 3.
"""

import zlib

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, UInt32


def step_key(key: Key[Array, ""], step: Int[Array, ""] | int) -> Key[Array, ""]:
    """The dropout key of a training step."""
    return jax.random.fold_in(key, step)


def fold_path(
    key: Key[Array, ""] | None, *path: str | int | UInt32[Array, ""]
) -> Key[Array, ""] | None:
    """The key of a module path: folds in the CRC-32 of each name, and each index itself.

    An index may be traced, as that of a scanned layer is. None, which means no dropout, stays None.
    """
    if key is None:
        return None
    for part in path:
        number = np.uint32(zlib.crc32(part.encode())) if isinstance(part, str) else part
        key = jax.random.fold_in(key, number)
    return key


def keep_mask(key: Key[Array, ""], rate: float, shape: tuple[int, ...]) -> Bool[Array, "..."]:
    """True, with probability 1 - rate, where a unit is kept."""
    return jax.random.bernoulli(key, 1.0 - rate, shape)


def dropout(x: Float[Array, "*S"], rate: float, key: Key[Array, ""] | None) -> Float[Array, "*S"]:
    """x / (1 - rate) where kept, 0 where dropped; x itself without a key or at rate 0."""
    if key is None or rate == 0.0:
        return x
    return jnp.where(keep_mask(key, rate, x.shape), x / (1.0 - rate), 0.0)
