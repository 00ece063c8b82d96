"""Causes in LSTM and GRU, packed batches too."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from parity_tests.causes.models import Packed
from parity_tests.causes.ports import Array, B, Port, Weights, check, draw, perturbed, run, sigmoid


def recurrent_port(model: nn.Module, lstm: bool) -> Any:
    w = Weights(model)

    def port(fault: str, x: Array) -> Any:
        if fault == "token-order":
            x = x[:, ::-1]
        h = c = np.zeros((B, 5))
        outputs = []
        for t in range(x.shape[1]):
            a = x[:, t] @ w["weight_ih_l0"].T + w["bias_ih_l0"]
            b = h @ w["weight_hh_l0"].T + (0 if fault == "bias-missing" else w["bias_hh_l0"])
            if lstm:
                i, f, g, o = np.split(a + b, 4, -1)
                if fault == "gate-order":
                    g, o = o, g
                if fault == "gate-order of TensorFlow":
                    f, g = g, f
                if fault == "activation":
                    g = sigmoid(g)
                g = g if fault == "activation" else np.tanh(g)
                c = sigmoid(f) * c + sigmoid(i) * g
                h = sigmoid(o) * (c if fault == "activation-missing" else np.tanh(c))
            else:
                (r, z, n), (r_h, z_h, n_h) = np.split(a, 3, -1), np.split(b, 3, -1)
                if fault == "gate-order":
                    r, z, r_h, z_h = z, r, z_h, r_h
                r, z = sigmoid(r + r_h), sigmoid(z + z_h)
                if fault == "reset-placement":
                    W, b_n = w["weight_hh_l0"][10:], w["bias_hh_l0"][10:]
                    n = np.tanh(n + (r * h) @ W.T + b_n)
                else:
                    n = np.tanh(n + r * n_h)
                h = z * n + (1 - z) * h if fault == "gate-swap" else (1 - z) * n + z * h
            outputs.append(h)
        y = np.stack(outputs, 1)
        return (y, (h[None], c[None])) if lstm else (y, h[None])

    return port


@pytest.mark.parametrize(
    ("lstm", "fault", "word"),
    [
        (True, "", None),
        (True, "gate-order", "gate-order"),
        (True, "gate-order of TensorFlow", "gate-order"),
        (True, "bias-missing", "bias-missing"),
        (True, "activation", "activation"),
        (True, "activation-missing", "activation-missing"),
        (False, "", None),
        (False, "gate-order", "gate-order"),
        (False, "gate-swap", "gate-swap"),
        (False, "reset-placement", "reset-placement"),
    ],
)
def test_recurrent(lstm: bool, fault: str, word: str | None) -> None:
    model = perturbed((nn.LSTM if lstm else nn.GRU)(3, 5, batch_first=True))
    check(run(Port(model, (draw(B, 4, 3),), recurrent_port(model, lstm)), fault), word)


@pytest.mark.parametrize(
    ("fault", "word"), [("", None), ("padding", "padding"), ("sides", "split-order")]
)
def test_packed_sequences(fault: str, word: str | None) -> None:
    model = perturbed(Packed())
    w = Weights(model)

    def side(x: Array, suffix: str) -> Array:
        h = c = np.zeros(5)
        for row in x:
            a = row @ w[f"lstm.weight_ih_l0{suffix}"].T + w[f"lstm.bias_ih_l0{suffix}"]
            a = a + h @ w[f"lstm.weight_hh_l0{suffix}"].T + w[f"lstm.bias_hh_l0{suffix}"]
            i, f, g, o = np.split(a, 4)
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(c)
        return h

    def port(fault: str, x: Array, lengths: Array) -> Array:
        rows = []
        for row, n in zip(x, lengths, strict=True):
            own = row if fault == "padding" else row[:n]
            back = own if fault == "token-order" else own[::-1]
            ends = [side(own, ""), side(back, "_reverse")]
            rows.append(np.concatenate(ends[::-1] if fault == "sides" else ends))
        return np.stack(rows)

    check(run(Port(model, (draw(2, 4, 3), torch.tensor([4, 2])), port), fault), word)
