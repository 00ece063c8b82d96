"""Causes in norms and channels."""

from typing import Any

import numpy as np
import pytest
from torch import nn

from parity_tests.causes.models import Channels
from parity_tests.causes.ports import (
    Array,
    B,
    D,
    Port,
    Weights,
    check,
    convolve,
    draw,
    norm_cases,
    normalise,
    perturbed,
    run,
)


def channels_port(kind: str, module: nn.Module) -> Any:
    w = Weights(module)

    def affine(y: Array) -> Array:
        return y * w["layer.weight"][:, None, None] + w["layer.bias"][:, None, None]

    def group(fault: str, x: Array) -> Array:
        G = 4 if fault == "groups" else 3
        if fault == "groups strided":
            z = x.reshape(B, D // G, G, *x.shape[2:])
            return affine(normalise(z, (1, 3, 4)).reshape(x.shape))
        return affine(normalise(x.reshape(B, G, -1), -1).reshape(x.shape))

    def batch(fault: str, x: Array) -> Array:
        if fault == "batch-statistics":
            return affine(normalise(x, (0, 2, 3)))
        eps = 1e-3 if fault == "epsilon" else 1e-5
        mean, var = w["layer.running_mean"], w["layer.running_var"]
        return affine((x - mean[:, None, None]) / np.sqrt(var[:, None, None] + eps))

    def conv(fault: str, x: Array) -> Array:
        kernel, G = w["layer.weight"], 3
        order = np.arange(D).reshape(D // G, G).T.reshape(-1) if fault == "groups" else np.arange(D)
        y = np.concatenate(
            [convolve(x[:, order[g * 4 : g * 4 + 4]], kernel[g * 4 : g * 4 + 4]) for g in range(G)],
            1,
        )
        return y + w["layer.bias"][:, None, None]

    return {"group": group, "batch": batch, "conv": conv}[kind]


NORMS = [
    ("LayerNorm", "epsilon", "epsilon"),
    ("LayerNorm", "epsilon of 1e-12", "epsilon"),
    ("LayerNorm", "outside", "epsilon"),
    ("LayerNorm", "norm-axis", "norm-axis"),
    ("LayerNorm", "norm-missing", "norm-missing"),
    ("LayerNorm", "norm-gain", "norm-gain"),
    ("LayerNorm", "norm-gain 1+", "norm-gain"),
    ("LayerNorm", "bias-missing", "bias-missing"),
    ("LayerNorm", "norm-statistics", "norm-statistics"),
    ("LayerNorm", "strange", None),
    ("LayerNorm", "", None),
    ("LayerNorm by hand", "epsilon", "epsilon"),
    ("LayerNorm by hand", "epsilon unusual", "epsilon"),
    ("LayerNorm by hand", "norm-axis", "norm-axis"),
    ("LayerNorm by hand", "norm-missing", "norm-missing"),
    ("LayerNorm by hand", "norm-gain", "norm-gain"),
    ("LayerNorm by hand", "norm-gain 1+", "norm-gain"),
    ("LayerNorm by hand", "bias-missing", "bias-missing"),
    ("LayerNorm by hand", "strange", None),
    ("LayerNorm by hand", "", None),
    ("RMSNorm by hand", "epsilon", "epsilon"),
    ("RMSNorm by hand", "norm-gain", "norm-gain"),
    ("RMSNorm by hand", "norm-gain none", "norm-gain"),
    ("RMSNorm by hand", "", None),
    ("RMSNorm", "epsilon", "epsilon"),
    ("RMSNorm", "norm-gain none", "norm-gain"),
    ("RMSNorm", "norm-statistics", "norm-statistics"),
    ("RMSNorm", "", None),
    ("Gemma's norm", "norm-gain", "norm-gain"),
    ("Gemma's norm", "norm-gain none", "norm-gain"),
    ("Gemma's norm", "", None),
]


@pytest.mark.parametrize(("model", "fault", "word"), NORMS)
def test_norms(model: str, fault: str, word: str | None) -> None:
    check(run(norm_cases()[model], fault), word)


@pytest.mark.parametrize(
    ("kind", "fault", "word"),
    [
        ("group", "groups", "groups"),
        ("group", "groups strided", "groups"),
        ("group", "", None),
        ("batch", "batch-statistics", "batch-statistics"),
        ("batch", "epsilon", "epsilon"),
        ("batch", "", None),
        ("conv", "groups", "groups"),
        ("conv", "", None),
    ],
)
def test_channels(kind: str, fault: str, word: str | None) -> None:
    model = perturbed(Channels(kind))
    check(run(Port(model, (draw(B, D, 3, 5),), channels_port(kind, model)), fault), word)
