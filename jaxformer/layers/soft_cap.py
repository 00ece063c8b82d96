"""The soft cap of scores and logits: no number leaves (-c, c) (Gemma 2 2024, section 2)."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxformer.layers.precision import upcast


def soft_cap(x: Float[Array, "*S"], cap: float | None) -> Float[Array, "*S"]:
    """c tanh(x / c), in float32 or wider; x itself without a cap."""
    return x if cap is None else (cap * jnp.tanh(upcast(x) / cap)).astype(x.dtype)


def soft_cap_slope(capped: Float[Array, "*S"], cap: float | None) -> Float[Array, "*S"] | float:
    """Its derivative at the x of which `capped` is the soft cap: 1 - (capped / c)²."""
    return 1.0 if cap is None else 1.0 - jnp.square(capped / cap)
