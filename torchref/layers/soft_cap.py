"""The soft cap of scores and logits: no number leaves (-c, c) (Gemma 2 2024, section 2)."""

import torch
from torch import Tensor


def soft_cap(x: Tensor, cap: float | None) -> Tensor:
    """c tanh(x / c), in float32 or wider; x itself without a cap."""
    if cap is None:
        return x
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return (cap * torch.tanh(wide / cap)).to(x.dtype)
