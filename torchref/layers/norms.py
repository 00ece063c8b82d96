"""Layer normalisation (Ba et al. 2016) and RMSNorm (Zhang & Sennrich 2019), written out.

Equal to torch.nn.LayerNorm and torch.nn.RMSNorm.
"""

import torch
from torch import Tensor, nn

from torchref.config import BlockConfig, DecoderConfig


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


def rms_norm(x: Tensor, scale_D: Tensor, epsilon: float) -> Tensor:
    """y = x / sqrt(mean of x² + epsilon) * scale, over the last axis."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    mean_square = wide.square().mean(dim=-1, keepdim=True)
    return (wide / torch.sqrt(mean_square + epsilon) * scale_D).to(x.dtype)


class RMSNorm(nn.Module):
    """`rms_norm` with a trained scale, ones at first; or of 1 + scale, zeros at first."""

    def __init__(self, width: int, config: DecoderConfig):
        super().__init__()
        self.offset = 1.0 if config.norm_unit_offset else 0.0
        self.weight = nn.Parameter(torch.full((width,), 1.0 - self.offset))
        self.epsilon = config.norm_epsilon

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.offset + self.weight, self.epsilon)
