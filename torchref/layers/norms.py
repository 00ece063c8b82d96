"""Layer normalisation (Ba et al. 2016), written out; equal to torch.nn.LayerNorm."""

import torch
from torch import Tensor, nn

from torchref.config import BlockConfig


def layer_norm(x: Tensor, scale_D: Tensor, bias_D: Tensor | None, epsilon: float) -> Tensor:
    """y = (x - mean) / sqrt(variance + epsilon) * scale + bias, over the last axis."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    centred = wide - wide.mean(dim=-1, keepdim=True)
    variance = centred.square().mean(dim=-1, keepdim=True)
    y = centred / torch.sqrt(variance + epsilon) * scale_D
    if bias_D is not None:
        y = y + bias_D
    return y.to(x.dtype)


class LayerNorm(nn.Module):
    """`layer_norm` with a trained scale (ones at first) and bias (zeros at first)."""

    def __init__(self, config: BlockConfig):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(config.width))
        self.bias = nn.Parameter(torch.zeros(config.width)) if config.use_bias else None
        self.epsilon = config.norm_epsilon

    def forward(self, x: Tensor) -> Tensor:
        return layer_norm(x, self.weight, self.bias, self.epsilon)
