"""The position-wise feed-forward network (Vaswani et al. 2017, section 3.3), and the gated one that
took its place (Shazeer 2020, equation 6).
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from torchref.config import BlockConfig, DecoderConfig


def relu(x: Tensor) -> Tensor:
    """max(x, 0)."""
    return torch.relu(x)


def gelu(x: Tensor) -> Tensor:
    """x Phi(x), with Phi the normal distribution function (Hendrycks & Gimpel 2016, section 2)."""
    return x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0)))


def gelu_tanh(x: Tensor) -> Tensor:
    """x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x³))), the form GPT-2 uses (ibid.)."""
    return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


def silu(x: Tensor) -> Tensor:
    """x / (1 + exp(-x)), also called swish."""
    return x * torch.sigmoid(x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": relu,
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "silu": silu,
}


class MLP(nn.Module):
    """y = activation(x W1 + b1) W2 + b2, of inner width F."""

    def __init__(self, config: BlockConfig):
        super().__init__()
        D, F = config.width, config.mlp_width
        self.up = nn.Linear(D, F, bias=config.use_bias)
        self.down = nn.Linear(F, D, bias=config.use_bias)
        self.activation = config.activation

    def forward(self, x_BLD: Tensor) -> Tensor:
        return self.down(ACTIVATIONS[self.activation](self.up(x_BLD)))


class GatedMLP(nn.Module):
    """y = (activation(x W1 + b1) * (x W2 + b2)) W3 + b3: SwiGLU with `silu`, GeGLU with a GELU."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        D, F, bias = config.width, config.mlp_width, config.mlp_bias
        self.gate = nn.Linear(D, F, bias=bias)
        self.up = nn.Linear(D, F, bias=bias)
        self.down = nn.Linear(F, D, bias=bias)
        self.activation = config.activation

    def forward(self, x_BLD: Tensor) -> Tensor:
        return self.down(ACTIVATIONS[self.activation](self.gate(x_BLD)) * self.up(x_BLD))
