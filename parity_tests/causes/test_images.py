"""Causes in convolutions, pooling and patches."""

from typing import Any

import numpy as np
import pytest

from parity_tests.causes.models import Images, Patches
from parity_tests.causes.ports import Array, D, Port, Weights, check, convolve, draw, perturbed, run


def images_port(model: Images, stride: int) -> Any:
    w = Weights(model)

    def port(fault: str, x: Array) -> Array:
        kernel = w["conv.weight"]
        if fault == "transposed-kernel":
            kernel = kernel.swapaxes(0, 1)
        if fault == "kernel-layout":
            kernel = kernel.swapaxes(2, 3)
        if fault == "kernel flipped":
            kernel = kernel[:, :, ::-1, ::-1]
        if fault == "kernel reshaped":
            kernel = kernel.transpose(2, 3, 1, 0).reshape(kernel.shape)
        pad = ((0, 1), (0, 1)) if fault == "conv-padding" and stride == 2 else ((1, 1), (1, 1))
        if fault == "conv-padding" and stride == 1:
            pad = ((2, 0), (2, 0))
        y = convolve(x, kernel, pad, stride, "edge" if fault == "padding mode" else "constant")
        y = y + (0 if fault == "bias-missing" else w["conv.bias"][:, None, None])
        act = lambda v: v if fault == "activation-missing" else np.maximum(v, 0)  # noqa: E731

        def norm(v: Array) -> Array:
            mean, var = w["norm.running_mean"], w["norm.running_var"]
            if fault == "batch-statistics":
                mean, var = v.mean((0, 2, 3)), v.var((0, 2, 3))
            v = (v - mean[:, None, None]) / np.sqrt(var[:, None, None] + 1e-5)
            return v * w["norm.weight"][:, None, None] + w["norm.bias"][:, None, None]

        y = norm(act(y)) if fault == "norm-placement" else act(norm(y))
        rows, columns = y.shape[2] // 2, y.shape[3] // 2
        y = y[:, :, : 2 * rows, : 2 * columns].reshape(2, 3, rows, 2, columns, 2)
        y = y.mean((3, 5)) if fault == "pooling" else y.max((3, 5))
        if fault == "flatten-order":
            y = y.transpose(0, 2, 3, 1)
        return w.linear("head", y.reshape(2, -1))

    return port


@pytest.mark.parametrize(
    ("stride", "fault", "word"),
    [
        *(
            (1, "", None),
            (1, "transposed-kernel", "transposed-kernel"),
            (1, "kernel-layout", "kernel-layout"),
        ),
        *((1, "kernel flipped", "kernel-layout"), (1, "kernel reshaped", "kernel-layout")),
        *((1, "conv-padding", "conv-padding"), (2, "conv-padding", "conv-padding")),
        *((1, "padding mode", "conv-padding"), (1, "bias-missing", "bias-missing")),
        *((1, "batch-statistics", "batch-statistics"), (1, "norm-placement", "norm-placement")),
        *((1, "pooling", "pooling"), (1, "flatten-order", "flatten-order")),
        (1, "activation-missing", "activation-missing"),
    ],
)
def test_images(stride: int, fault: str, word: str | None) -> None:
    model = perturbed(Images(stride))
    x = draw(2, 3, 4, 6) if stride == 1 else draw(2, 3, 4, 12)
    check(run(Port(model, (x,), images_port(model, stride)), fault), word)


def patches_port(model: Patches) -> Any:
    w = Weights(model)

    def port(fault: str, x: Array) -> Array:
        y = x.reshape(2, 3, 2, 2, 3, 2).transpose(0, 2, 4, 1, 3, 5)
        if fault == "token-order":
            y = y.transpose(0, 2, 1, 3, 4, 5)
        kernel = w["patch.weight"]
        y = np.einsum("bhwcij,dcij->bhwd", y, kernel).reshape(2, 6, D) + w["patch.bias"]
        cls = np.broadcast_to(w["cls"], (2, 1, D))
        y = np.concatenate([y, cls] if fault == "cls last" else [cls, y], 1)
        y = y + (0 if fault == "no positions" else w["positions"])
        y = np.tanh(y)
        y = {"pooling": y.max(1), "first": y[:, 0], "sum": y.sum(1)}.get(fault, y.mean(1))
        return w.linear("head", y)

    return port


@pytest.mark.parametrize(
    ("fault", "word"),
    [
        *(("", None), ("token-order", "token-order"), ("cls last", "token-order")),
        *(("pooling", "pooling"), ("first", "pooling"), ("sum", "pooling")),
    ],
)
def test_patches(fault: str, word: str | None) -> None:
    model = perturbed(Patches("mean"))
    check(run(Port(model, (draw(2, 3, 4, 6),), patches_port(model)), fault), word)
