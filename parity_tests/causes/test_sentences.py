"""Causes in pooled sentences, losses, experts and modulations."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from parity_tests.causes.models import Experts, Loss, Sentences
from parity_tests.causes.ports import (
    Array,
    B,
    D,
    L,
    Port,
    Weights,
    check,
    draw,
    perturbed,
    run,
    silu,
    softmax,
)


@pytest.mark.parametrize(
    ("fault", "word"),
    [
        ("", None),
        ("padding", "padding"),
        ("pooling", "pooling"),
        ("untied-head", "untied-head"),
        ("bias", None),
    ],
)
def test_sentences(fault: str, word: str | None) -> None:
    model = perturbed(Sentences())
    w = Weights(model)
    ids = torch.tensor([[3, 5, 0, 0, 0], [1, 2, 9, 4, 0]])

    def port(fault: str, ids: Array) -> Array:
        mask = (ids != 0)[..., None]
        x = np.tanh(w["embed.weight"][ids])
        pooled = (x * mask).sum(1) / mask.sum(1)
        if fault == "padding":
            pooled = x.mean(1)
        if fault == "pooling":
            pooled = (x * mask).sum(1)
        head = w["embed.weight"] if fault == "untied-head" else w["head.weight"]
        return pooled @ head.T + (np.arange(11) ** 2 if fault == "bias" else 0)

    check(run(Port(model, (ids,), port), fault), word)


@pytest.mark.parametrize(("fault", "word"), [("", None), ("label-shift", "label-shift")])
def test_labels(fault: str, word: str | None) -> None:
    model = perturbed(Loss())
    w = Weights(model)

    def port(fault: str, ids: Array) -> Array:
        logits = w.linear("head", w["embed.weight"][ids])[:, :-1]
        labels = ids[:, :-1] if fault == "label-shift" else ids[:, 1:]
        log_p = np.log(softmax(logits))
        return -np.take_along_axis(log_p, labels[..., None], -1).mean()

    ids = torch.tensor([[3, 5, 0, 7, 8], [1, 2, 9, 4, 0]])
    check(run(Port(model, (ids,), port), fault), word)


@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize(
    ("fault", "word"), [("", None), ("router-normalisation", "router-normalisation")]
)
def test_experts(normalised: bool, fault: str, word: str | None) -> None:
    model = perturbed(Experts(normalised))
    w = Weights(model)

    def port(fault: str, x: Array) -> Array:
        p = softmax(x @ w["router.weight"].T)
        chosen = np.argsort(-p, -1)[..., :2]
        weights = np.take_along_axis(p, chosen, -1)
        if normalised != (fault == "router-normalisation"):
            weights = weights / weights.sum(-1, keepdims=True)
        y = np.einsum("bld,blkde->blke", x, w["kernels"][chosen])
        return (y * weights[..., None]).sum(2)

    check(run(Port(model, (draw(B, L, D),), port), fault), word)


class Modulated(nn.Module):
    """A scale and a shift from one projection, as in adaptive norms."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(D, 2 * D)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.project(F.silu(c)).chunk(2, -1)
        return x * (1 + scale) + shift


@pytest.mark.parametrize(
    ("fault", "word"), [("", None), ("split-order", "split-order"), ("pairs", "split-order")]
)
def test_modulation(fault: str, word: str | None) -> None:
    model = perturbed(Modulated())
    w = Weights(model)

    def port(fault: str, x: Array, c: Array) -> Array:
        y = w.linear("project", silu(c))
        shift, scale = np.split(y, 2, -1)
        if fault == "pairs":
            shift, scale = y[..., ::2], y[..., 1::2]
        if fault == "split-order":
            shift, scale = scale, shift
        return x * (1 + scale) + shift

    check(run(Port(model, (draw(B, D), draw(B, D, seed=2)), port), fault), word)
