"""Position encodings: learned (GPT-2) and sinusoidal (Vaswani et al. 2017, section 3.5)."""

import torch
from torch import Tensor, nn

from torchref.config import BlockConfig


class LearnedPositions(nn.Module):
    """One trained vector for each position: p -> W[p]."""

    def __init__(self, length: int, config: BlockConfig):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(length, config.width))
        nn.init.normal_(self.weight, std=config.init_std)

    def forward(self, positions: Tensor) -> Tensor:
        return self.weight[positions]


def sinusoidal_positions(length: int, width: int) -> Tensor:
    """PE[p, 2i] = sin(p / 10000^(2i/D)), PE[p, 2i+1] = cos(p / 10000^(2i/D)): (L, D), float64."""
    position = torch.arange(length, dtype=torch.float64)[:, None]
    angles = position / 10_000.0 ** (torch.arange(0, width, 2, dtype=torch.float64) / width)
    table = torch.empty(length, width, dtype=torch.float64)
    table[:, 0::2] = torch.sin(angles)
    table[:, 1::2] = torch.cos(angles)
    return table
