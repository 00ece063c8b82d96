"""Causes in positions: biases, rotary, embeddings."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from parity_tests.causes.models import Biased, Embedded, R, RotaryAttention
from parity_tests.causes.ports import (
    Array,
    B,
    D,
    H,
    K,
    L,
    Port,
    Weights,
    check,
    draw,
    normalise,
    perturbed,
    run,
    softmax,
)


def biased_port(model: Biased) -> Any:
    w = Weights(model)

    def port(fault: str, x: Array) -> Array:
        q, k, v = (w.linear(n, x).reshape(B, L, H, K).transpose(0, 2, 1, 3) for n in "qkv")
        distance = np.arange(L)[None, :] - np.arange(L)[:, None]
        if fault == "sign":
            distance = -distance
        if model.alibi:
            start = 0 if fault == "slopes" else 1
            bias = (2.0 ** (-8 * np.arange(start, H + start) / H))[:, None, None] * -abs(distance)
        else:
            bias = w["relative.weight"][distance + 4].transpose(2, 0, 1)
        if fault == "missing":
            bias = 0 * bias
        s = q @ k.transpose(0, 1, 3, 2) * (K**-0.5 if fault == "scale-extra" else 1) + bias
        return (softmax(s) @ v).transpose(0, 2, 1, 3).reshape(B, L, D)

    return port


@pytest.mark.parametrize(
    ("alibi", "fault", "word"),
    [
        (False, "", None),
        (False, "sign", "position-bias"),
        (False, "missing", "position-bias"),
        (False, "scale-extra", "scale-extra"),
        (True, "", None),
        (True, "slopes", "position-bias"),
        (True, "missing", "position-bias"),
    ],
)
def test_position_bias(alibi: bool, fault: str, word: str | None) -> None:
    model = perturbed(Biased(alibi))
    check(run(Port(model, (draw(B, L, D),), biased_port(model)), fault), word)


def rotary_port(model: RotaryAttention) -> Any:
    w = Weights(model)

    def rotate(x: Array, fault: str) -> Array:
        base = {"rotary-base": 5e5, "rotary-base 1e6": 1e6}.get(fault, 1e4)
        exponents = np.arange(0, R, 2) / R
        if fault == "frequencies":
            exponents = np.arange(R // 2) / R
        angles = np.arange(x.shape[2])[:, None] * base**-exponents
        if fault == "axis":
            angles = (np.arange(H)[:, None] * base**-exponents)[:, None]
        c, s = np.cos(angles), np.sin(angles)
        if fault == "sin-cos-order":
            c, s = s, c
        if fault == "direction":
            s = -s
        halves = (model.form == "halves") != (fault == "rotary-form")
        if halves:
            a, b = np.split(x, 2, -1)
            return np.concatenate([a * c - b * s, a * s + b * c], -1)
        a, b = x[..., ::2], x[..., 1::2]
        return np.stack([a * c - b * s, a * s + b * c], -1).reshape(x.shape)

    def port(fault: str, x: Array) -> Array:
        n = x.shape[1]
        q, k, v = (w.linear(name, x).reshape(B, n, H, R).transpose(0, 2, 1, 3) for name in "qkv")
        k = k if fault == "keys not turned" else rotate(k, fault)
        s = rotate(q, fault) @ k.transpose(0, 1, 3, 2) / math.sqrt(R)
        s = np.where(np.tri(n, dtype=bool), s, -np.inf)
        return (softmax(s) @ v).transpose(0, 2, 1, 3).reshape(B, n, H * R)

    return port


@pytest.mark.parametrize("form", ["halves", "pairs", "complex"])
@pytest.mark.parametrize(
    ("fault", "word"),
    [
        *(("", None), ("rotary-form", "rotary-form"), ("rotary-base", "rotary-base")),
        *(("rotary-base 1e6", "rotary-base"), ("frequencies", "frequencies")),
        *(("sin-cos-order", "sin-cos-order"), ("keys not turned", "rotary-form")),
        ("axis", "rotary-form"),
    ],
)
def test_rotary(form: str, fault: str, word: str | None) -> None:
    model = perturbed(RotaryAttention(form))
    with torch.no_grad():
        model.inv_freq.copy_(RotaryAttention(form).inv_freq)
    check(run(Port(model, (draw(B, 7, D),), rotary_port(model)), fault), word)


def embedded_port(model: Embedded) -> Any:
    w = Weights(model)

    def port(fault: str, ids: Array) -> Array:
        x = w["tokens.weight"][ids]
        at = np.arange(ids.shape[1])
        if fault == "padding":
            x = x * (ids != 0)[..., None]
        if model.learned:
            x = x * (math.sqrt(D) if fault == "embedding-scale" else 1)
            x = x + w["positions.weight"][at + {"position-offset": 0, "one": 1}.get(fault, 2)]
        else:
            x = x * (1 if fault == "embedding-scale" else math.sqrt(D))
            i = np.arange(0, D, 2)
            exponents = i / D
            if fault == "frequencies":
                exponents = i / (D - 2)
            if fault == "position-offset":
                at = at + 1
            angles = at[:, None] * (1e3 if fault == "base" else 1e4) ** -exponents
            s, c = np.sin(angles), np.cos(angles)
            if fault == "sin-cos-order":
                s, c = c, s
            table = np.stack([s, c], -1).reshape(len(at), D)
            if fault == "halves":
                table = np.concatenate([s, c], -1)
            x = x + table * (math.sqrt(D) if fault == "positions scaled" else 1)
        return normalise(x) * w["norm.weight"] + w["norm.bias"]

    return port


@pytest.mark.parametrize(
    ("learned", "fault", "word"),
    [
        (True, "", None),
        (True, "position-offset", "position-offset"),
        (True, "one", "position-offset"),
        (True, "embedding-scale", "embedding-scale"),
        (True, "padding", "padding"),
        (False, "", None),
        (False, "embedding-scale", "embedding-scale"),
        (False, "positions scaled", "embedding-scale"),
        (False, "frequencies", "frequencies"),
        (False, "base", "frequencies"),
        (False, "position-offset", "position-offset"),
        (False, "sin-cos-order", "sin-cos-order"),
        (False, "halves", "sin-cos-order"),
    ],
)
def test_embeddings(learned: bool, fault: str, word: str | None) -> None:
    model = perturbed(Embedded(learned))
    with torch.no_grad():
        model.table.copy_(Embedded(False).table)
    ids = torch.tensor([[3, 5, 0, 7, 0], [1, 2, 9, 4, 10]])
    check(run(Port(model, (ids,), embedded_port(model)), fault), word)
