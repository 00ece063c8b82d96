"""The train step, written the way a PyTorch loop is."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from torchref.layers.dropout import Keep
from torchref.training.loss import cross_entropy


class Batch(NamedTuple):
    """Tokens, the tokens that follow them, and which of those count in the loss: each (B, L)."""

    inputs: Tensor
    targets: Tensor
    mask: Tensor


class Metrics(NamedTuple):
    """Mean loss in nats per token, and the gradient's norm before clipping."""

    loss: float
    grad_norm: float


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    learning_rate: Callable[[int], float],
    clip_norm: float,
    step: int,
    slices: Sequence[Batch],
    keeps: Sequence[Keep | None],
) -> Metrics:
    """Update `model` in place from a batch cut into accumulation slices, each with its dropout."""
    optimizer.zero_grad()
    tokens = sum(int(part.mask.sum()) for part in slices)
    loss = 0.0
    for part, keep in zip(slices, keeps, strict=True):
        summed, _ = cross_entropy(model(part.inputs, keep=keep), part.targets, part.mask)
        (summed / max(tokens, 1)).backward()
        loss += float(summed.detach()) / max(tokens, 1)
    grad_norm = nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(step)
    optimizer.step()
    return Metrics(loss, float(grad_norm))
