"""The affine map under every projection; its twin is torch.nn.Linear."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxformer.config import BlockConfig


class Linear(nnx.Module):
    """y = x W + b with W of shape (in, out), the transpose of torch.nn.Linear's weight."""

    def __init__(self, widths: tuple[int, int], config: BlockConfig, rngs: nnx.Rngs, std: float):
        """Widths are (in, out); W starts as N(0, std²), b as zeros."""
        init = jax.nn.initializers.normal(std)
        self.kernel = nnx.Param(init(rngs.params(), widths, config.param_dtype))
        bias = jnp.zeros(widths[1], config.param_dtype)
        self.bias = nnx.Param(bias) if config.use_bias else None
        self.dtype = config.dtype

    def __call__(self, x: Float[Array, "*B I"]) -> Float[Array, "*B O"]:
        # One flat batch axis: XLA then forms the gradient of W without a transposing copy of x.
        kernel = self.kernel[...].astype(self.dtype)
        y = x.reshape(-1, x.shape[-1]) @ kernel
        if self.bias is not None:
            # Cast after broadcasting: its gradient is then summed over the batch in float32.
            y = y + jnp.broadcast_to(self.bias[...], y.shape).astype(self.dtype)
        return y.reshape(*x.shape[:-1], kernel.shape[1])
