"""The position-wise feed-forward network (Vaswani et al. 2017, section 3.3), and the gated one that
took its place (Shazeer 2020, equation 6).

The backward pass of a GELU computes it again from x, which its `Linear` keeps in any case: else XLA
keeps an array of B x L x F more for each block, and the step of GPT-2 takes a sixth more memory.
"""

from collections.abc import Callable

import jax
from flax import nnx
from jaxtyping import Array, Float

from jaxformer.config import Activation, BlockConfig, DecoderConfig
from jaxformer.layers.linear import Linear


@jax.checkpoint
def gelu(x: Float[Array, "*S"]) -> Float[Array, "*S"]:
    """x Phi(x), with Phi the normal distribution function (Hendrycks & Gimpel 2016, section 2)."""
    return jax.nn.gelu(x, approximate=False)


@jax.checkpoint
def gelu_tanh(x: Float[Array, "*S"]) -> Float[Array, "*S"]:
    """x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x³))), the form GPT-2 uses (ibid.)."""
    return jax.nn.gelu(x, approximate=True)


@jax.checkpoint
def silu(x: Float[Array, "*S"]) -> Float[Array, "*S"]:
    """x / (1 + exp(-x)), also called swish (Hendrycks & Gimpel 2016; Ramachandran et al. 2017)."""
    return jax.nn.silu(x)


ACTIVATIONS: dict[Activation, Callable[[Array], Array]] = {
    "relu": jax.nn.relu,
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "silu": silu,
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


class GatedMLP(nnx.Module):
    """y = (activation(x W1 + b1) * (x W2 + b2)) W3 + b3: SwiGLU with `silu`, GeGLU with a GELU."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        D, F, bias = config.width, config.mlp_width, config.mlp_bias
        self.gate = Linear((D, F), config, rngs, use_bias=bias)
        self.up = Linear((D, F), config, rngs, use_bias=bias)
        self.down = Linear((F, D), config, rngs, residual=True, use_bias=bias)
        self.activation = config.activation

    def __call__(self, x_BLD: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        return self.down(ACTIVATIONS[self.activation](self.gate(x_BLD)) * self.up(x_BLD))
