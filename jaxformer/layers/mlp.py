"""The position-wise feed-forward network (Vaswani et al. 2017, section 3.3).

The backward pass of a GELU computes it again from x, which its `Linear` keeps in any case: else XLA
keeps an array of B x L x F more for each block, and the step of GPT-2 takes a sixth more memory.
"""

from collections.abc import Callable

import jax
from flax import nnx
from jaxtyping import Array, Float

from jaxformer.config import Activation, BlockConfig
from jaxformer.layers.linear import Linear


@jax.checkpoint
def gelu(x: Float[Array, "*S"]) -> Float[Array, "*S"]:
    """x Phi(x), with Phi the normal distribution function (Hendrycks & Gimpel 2016, section 2)."""
    return jax.nn.gelu(x, approximate=False)


@jax.checkpoint
def gelu_tanh(x: Float[Array, "*S"]) -> Float[Array, "*S"]:
    """x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x³))), the form GPT-2 uses (ibid.)."""
    return jax.nn.gelu(x, approximate=True)


ACTIVATIONS: dict[Activation, Callable[[Array], Array]] = {
    "relu": jax.nn.relu,
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
}


class MLP(nnx.Module):
    """y = activation(x W1 + b1) W2 + b2, of inner width F."""

    def __init__(self, config: BlockConfig, rngs: nnx.Rngs):
        D, F = config.width, config.mlp_width
        self.up = Linear((D, F), config, rngs)
        self.down = Linear((F, D), config, rngs, residual=True)
        self.activation = config.activation

    def __call__(self, x_BLD: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        return self.down(ACTIVATIONS[self.activation](self.up(x_BLD)))
