"""Cross-entropy over tokens, summed together with the number of tokens it was summed over."""

import torch
from torch import Tensor


def cross_entropy(logits_BLV: Tensor, targets_BL: Tensor, mask_BL: Tensor) -> tuple[Tensor, Tensor]:
    """(sum of -log softmax(logits)[target], number of tokens) where the mask is True."""
    wide = logits_BLV.to(torch.promote_types(logits_BLV.dtype, torch.float32))
    log_normaliser = torch.logsumexp(wide, dim=-1)
    target_logits = wide.gather(-1, targets_BL[..., None])[..., 0]
    losses_BL = torch.where(mask_BL, log_normaliser - target_logits, 0.0)
    return losses_BL.sum(), mask_BL.sum()
