"""Layer normalisation (Ba et al. 2016), by the two-pass variance, and RMSNorm (Zhang & Sennrich
2019), both in float32 or wider."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxformer.config import BlockConfig, DecoderConfig
from jaxformer.layers.precision import upcast


def layer_norm(
    x: Float[Array, "*B D"],
    scale_D: Float[Array, " D"],
    bias_D: Float[Array, " D"] | None,
    epsilon: float,
) -> Float[Array, "*B D"]:
    """y = (x - mean) / sqrt(variance + epsilon) * scale + bias, over the last axis.

    The variance is the mean of squared deviations: E[x²] - E[x]² cancels when |mean| >> std.
    """
    wide = upcast(x)
    centred = wide - wide.mean(axis=-1, keepdims=True)
    variance = jnp.square(centred).mean(axis=-1, keepdims=True)
    y = centred / jnp.sqrt(variance + epsilon) * scale_D
    if bias_D is not None:
        y = y + bias_D
    return y.astype(x.dtype)


class LayerNorm(nnx.Module):
    """`layer_norm` with a trained scale (ones at first) and bias (zeros at first)."""

    def __init__(self, config: BlockConfig):
        shape, dtype = (config.width,), config.param_dtype
        self.scale = nnx.Param(jnp.ones(shape, dtype))
        self.bias = nnx.Param(jnp.zeros(shape, dtype)) if config.use_bias else None
        self.epsilon = config.norm_epsilon

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        bias_D = None if self.bias is None else self.bias[...]
        return layer_norm(x, self.scale[...], bias_D, self.epsilon)


def rms_norm(
    x: Float[Array, "*B D"], scale_D: Float[Array, " D"], epsilon: float
) -> Float[Array, "*B D"]:
    """y = x / sqrt(mean of x² + epsilon) * scale, over the last axis (ibid., equation 4)."""
    wide = upcast(x)
    mean_square = jnp.square(wide).mean(axis=-1, keepdims=True)
    return (wide / jnp.sqrt(mean_square + epsilon) * scale_D).astype(x.dtype)


class RMSNorm(nnx.Module):
    """`rms_norm` with a trained scale, ones at first; or of 1 + scale, zeros at first (Gemma)."""

    def __init__(self, width: int, config: DecoderConfig):
        self.offset = 1.0 if config.norm_unit_offset else 0.0
        self.scale = nnx.Param(jnp.full(width, 1.0 - self.offset, config.param_dtype))
        self.epsilon = config.norm_epsilon

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        return rms_norm(x, self.offset + self.scale[...], self.epsilon)
