"""The type of reductions, `Precision.reductions`, of arrays whose config is not at hand."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array


def reduction_dtype(dtype: Any) -> jnp.dtype:
    """float32, or the type itself if it is wider."""
    return jnp.promote_types(dtype, jnp.float32)


def upcast(x: Array) -> Array:
    """The array in the type of reductions."""
    return x.astype(reduction_dtype(x.dtype))
