"""Losses over tokens and their accuracy, each summed together with the number of tokens in it."""

import torch
import torch.nn.functional as F
from torch import Tensor


def cross_entropy(logits_BLV: Tensor, targets_BL: Tensor, mask_BL: Tensor) -> tuple[Tensor, Tensor]:
    """(sum of -log softmax(logits)[target], number of tokens) where the mask is True."""
    wide = widened(logits_BLV)
    log_normaliser = torch.logsumexp(wide, dim=-1)
    target_logits = wide.gather(-1, targets_BL[..., None])[..., 0]
    return summed(log_normaliser - target_logits, mask_BL)


def smoothed_cross_entropy(
    logits_BLV: Tensor, targets_BL: Tensor, mask_BL: Tensor, smoothing: float
) -> tuple[Tensor, Tensor]:
    """-sum_v q_v log p_v of each token, q = (1 - eps) at the target + eps / V at every token."""
    losses_BL = F.cross_entropy(
        widened(logits_BLV).flatten(0, -2),
        targets_BL.flatten(),
        reduction="none",
        label_smoothing=smoothing,
    ).reshape(mask_BL.shape)
    return summed(losses_BL, mask_BL)


def label_smoothing_kl(
    logits_BLV: Tensor, targets_BL: Tensor, mask_BL: Tensor, smoothing: float, padding_id: int
) -> tuple[Tensor, Tensor]:
    """KL(q || p) of each token, q = 1 - eps at the target, 0 at padding, else eps / (V - 2)."""
    log_probs = widened(logits_BLV).log_softmax(-1)
    q_BLV = torch.full_like(log_probs, smoothing / (log_probs.shape[-1] - 2))
    q_BLV.scatter_(-1, targets_BL[..., None], 1.0 - smoothing)
    q_BLV[..., padding_id] = 0.0
    losses_BL = F.kl_div(log_probs, q_BLV, reduction="none").sum(-1)
    return summed(losses_BL, mask_BL)


def accuracy(logits_BLV: Tensor, targets_BL: Tensor, mask_BL: Tensor) -> tuple[Tensor, Tensor]:
    """(number of tokens with argmax logits = target, number of tokens) where the mask is True."""
    wide = widened(logits_BLV)
    right_BL = wide.argmax(dim=-1) == targets_BL
    return summed(right_BL.to(wide.dtype), mask_BL)


def widened(logits_BLV: Tensor) -> Tensor:
    """The logits in float32 or wider."""
    return logits_BLV.to(torch.promote_types(logits_BLV.dtype, torch.float32))


def summed(losses_BL: Tensor, mask_BL: Tensor) -> tuple[Tensor, Tensor]:
    """The sum where the mask is True, and the number of tokens there."""
    return torch.where(mask_BL, losses_BL, 0.0).sum(), mask_BL.sum()
