"""Position encodings: learned (GPT-2) and sinusoidal (Vaswani et al. 2017, section 3.5)."""

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxformer.config import BlockConfig
from jaxformer.errors import UserError


def require_context(length: int, context_length: int) -> None:
    """Refuse a text longer than the context, whose positions a model does not have."""
    if length > context_length:
        raise UserError(
            f"{length:,} tokens exceed the context of {context_length:,}: give a shorter text"
        )


class LearnedPositions(nnx.Module):
    """One trained vector for each position: p -> W[p]."""

    def __init__(self, length: int, config: BlockConfig, rngs: nnx.Rngs):
        init = jax.nn.initializers.normal(config.init_std)
        shape = (length, config.width)
        self.embedding = nnx.Param(init(rngs.params(), shape, config.param_dtype))
        self.dtype = config.precision.compute

    def __call__(self, positions: Int[Array, "*B L"]) -> Float[Array, "*B L D"]:
        return self.embedding[...].astype(self.dtype)[positions]


def sinusoidal_positions(length: int, width: int) -> Float[np.ndarray, "L D"]:
    """PE[p, 2i] = sin(p / 10000^(2i/D)), PE[p, 2i+1] = cos(p / 10000^(2i/D)), in float64.

    Sines and cosines are interleaved, as in the paper's formula; D must be even.
    """
    frequencies = 10_000.0 ** (-np.arange(0, width, 2) / width)
    angles = np.arange(length)[:, None] * frequencies
    return np.stack([np.sin(angles), np.cos(angles)], axis=-1).reshape(length, width)
