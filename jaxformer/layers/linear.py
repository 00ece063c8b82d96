"""The affine map under every projection; its twin is torch.nn.Linear."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from jaxformer.config import LayerConfig

PRODUCT = "product"
"""The name of every result of a `Linear`, by which `stacks.py` keeps it."""


def affine(
    x_BI: Float[Array, "B I"], kernel_IO: Float[Array, "I O"], bias_O: Float[Array, " O"] | None
) -> Float[Array, "B O"]:
    """x W + b."""
    y_BO = x_BI @ kernel_IO
    return y_BO if bias_O is None else y_BO + bias_O


@jax.custom_vjp
def linear_bfloat16(
    x_BI: Float[Array, "B I"], kernel_IO: Float[Array, "I O"], bias_O: Float[Array, " O"] | None
) -> Float[Array, "B O"]:
    """x W + b of bfloat16 x and float32 W, b: multiplied in bfloat16, summed in float32.

    The result is rounded once, after the bias, and the gradients of W and b stay float32. Autodiff
    would round before it adds the bias and sum the gradient of b in bfloat16, or would multiply in
    float32 going backwards. It has only reverse-mode derivatives.
    """
    y_BO = jnp.matmul(x_BI, kernel_IO.astype(x_BI.dtype), preferred_element_type=kernel_IO.dtype)
    return (y_BO if bias_O is None else y_BO + bias_O).astype(x_BI.dtype)


def _narrow_forward(x_BI: Array, kernel_IO: Array, bias_O: Array | None) -> tuple[Array, tuple]:
    return linear_bfloat16(x_BI, kernel_IO, bias_O), (x_BI, kernel_IO, bias_O)


def _narrow_backward(saved: tuple, grad_BO: Array) -> tuple[Array, Array, Array | None]:
    x_BI, kernel_IO, bias_O = saved
    x_grad = grad_BO @ kernel_IO.astype(x_BI.dtype).T
    kernel_grad = jnp.matmul(x_BI.T, grad_BO, preferred_element_type=kernel_IO.dtype)
    bias_grad = None if bias_O is None else grad_BO.astype(bias_O.dtype).sum(axis=0)
    return x_grad, kernel_grad, bias_grad


linear_bfloat16.defvjp(_narrow_forward, _narrow_backward)


def kernel_init(config: LayerConfig, residual: bool) -> jax.nn.initializers.Initializer:
    """N(0, std²), smaller into the residual stream (Radford et al. 2019, section 2.3), or Xavier's
    U(-a, a) with a = sqrt(6 / (fan-in + fan-out)) (Glorot & Bengio 2010, equation 16)."""
    if config.initializer == "xavier":
        return jax.nn.initializers.xavier_uniform(in_axis=0, out_axis=1)
    return jax.nn.initializers.normal(config.residual_init_std if residual else config.init_std)


class Linear(nnx.Module):
    """y = x W + b with W of shape (in, out), the transpose of torch.nn.Linear's weight."""

    def __init__(
        self,
        widths: tuple[int, int],
        config: LayerConfig,
        rngs: nnx.Rngs,
        *,
        residual: bool = False,
        use_bias: bool | None = None,
    ):
        """Widths are (in, out); W is drawn by the config's initializer, b starts at zero.

        `residual` marks a projection into the residual stream; `use_bias` defaults to the config's.
        """
        init = kernel_init(config, residual)
        self.kernel = nnx.Param(init(rngs.params(), widths, config.param_dtype))
        bias = jnp.zeros(widths[1], config.param_dtype)
        has_bias = config.use_bias if use_bias is None else use_bias
        self.bias = nnx.Param(bias) if has_bias else None
        self.dtype = config.precision.compute

    def __call__(self, x: Float[Array, "*B I"]) -> Float[Array, "*B O"]:
        # One flat batch axis: XLA then forms the gradient of W without a transposing copy of x.
        x_BI = x.reshape(-1, x.shape[-1]).astype(self.dtype)
        bias_O = None if self.bias is None else self.bias[...]
        form = linear_bfloat16 if x_BI.dtype == jnp.bfloat16 else affine
        y_BO = checkpoint_name(form(x_BI, self.kernel[...], bias_O), PRODUCT)
        return y_BO.reshape(*x.shape[:-1], y_BO.shape[-1])
