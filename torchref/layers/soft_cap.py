"""The soft cap of scores and logits: no number leaves (-c, c) (Gemma 2 2024, section 2)."""

import torch
from torch import Tensor


def soft_cap(x: Tensor, cap: float | None) -> Tensor:
    """c tanh(x / c); x itself without a cap."""
    return x if cap is None else cap * torch.tanh(x / cap)
