"""The affine map under every projection; its twin is torch.nn.Linear."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxformer.config import BlockConfig


def affine(
    x_BI: Float[Array, "B I"], kernel_IO: Float[Array, "I O"], bias_O: Float[Array, " O"] | None
) -> Float[Array, "B O"]:
    """x W + b."""
    y_BO = x_BI @ kernel_IO
    return y_BO if bias_O is None else y_BO + bias_O


@jax.custom_vjp
def narrow_affine(
    x_BI: Float[Array, "B I"], kernel_IO: Float[Array, "I O"], bias_O: Float[Array, " O"] | None
) -> Float[Array, "B O"]:
    """x W + b of bfloat16 x and float32 W, b: multiplied in bfloat16, summed in float32.

    The result is rounded once, after the bias, and the gradients of W and b stay float32. Autodiff
    would round before it adds the bias and sum the gradient of b in bfloat16, or would multiply in
    float32 going backwards. In exchange only reverse-mode derivatives exist of this form.
    """
    y_BO = jnp.matmul(x_BI, kernel_IO.astype(x_BI.dtype), preferred_element_type=kernel_IO.dtype)
    return (y_BO if bias_O is None else y_BO + bias_O).astype(x_BI.dtype)


def _narrow_forward(x_BI: Array, kernel_IO: Array, bias_O: Array | None) -> tuple[Array, tuple]:
    return narrow_affine(x_BI, kernel_IO, bias_O), (x_BI, kernel_IO, bias_O)


def _narrow_backward(saved: tuple, grad_BO: Array) -> tuple[Array, Array, Array | None]:
    x_BI, kernel_IO, bias_O = saved
    x_grad = grad_BO @ kernel_IO.astype(x_BI.dtype).T
    kernel_grad = jnp.matmul(x_BI.T, grad_BO, preferred_element_type=kernel_IO.dtype)
    bias_grad = None if bias_O is None else grad_BO.astype(bias_O.dtype).sum(axis=0)
    return x_grad, kernel_grad, bias_grad


narrow_affine.defvjp(_narrow_forward, _narrow_backward)


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
        x_BI = x.reshape(-1, x.shape[-1]).astype(self.dtype)
        bias_O = None if self.bias is None else self.bias[...]
        form = narrow_affine if x_BI.dtype == jnp.bfloat16 else affine
        y_BO = form(x_BI, self.kernel[...], bias_O)
        return y_BO.reshape(*x.shape[:-1], y_BO.shape[-1])
