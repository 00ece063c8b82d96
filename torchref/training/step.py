"""The train step, written the way a PyTorch loop is."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from torchref.layers.dropout import Keep
from torchref.training.objectives import Objective


class Metrics(NamedTuple):
    """Mean loss in nats per token, gradient norm before clipping, whether no update was made."""

    loss: float
    grad_norm: float
    skipped: bool


def train_step(
    model: nn.Module,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    learning_rate: Callable[[int], float],
    clip_norm: float | None,
    step: int,
    slices: Sequence[Any],
    keeps: Sequence[Keep | None],
) -> Metrics:
    """Update `model` in place from a batch cut into accumulation slices, each with its dropout.

    A loss or gradient that is not finite changes nothing.
    """
    optimizer.zero_grad()
    tokens = sum(int(part.mask.sum()) for part in slices)
    loss = 0.0
    for part, keep in zip(slices, keeps, strict=True):
        summed, _ = objective(model, part, keep)
        (summed / max(tokens, 1)).backward()
        loss += float(summed.detach()) / max(tokens, 1)
    grad_norm = float(nn.utils.clip_grad_norm_(model.parameters(), clip_norm or math.inf))
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(step)
    is_finite = math.isfinite(loss) and math.isfinite(grad_norm)
    if is_finite:
        optimizer.step()
    return Metrics(loss, grad_norm, not is_finite)
