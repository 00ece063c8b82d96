"""A CRNN: convolutions, then bidirectional GRUs over columns; a port as a callable pytree."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from torch import nn

from benchmarks.porting.case import Case, Fault, draw

HIDDEN, CLASSES = 9, 8


class CRNN(nn.Module):
    def __init__(self):
        super().__init__()
        self.cnn = nn.Sequential(
            nn.Conv2d(1, 6, 3, padding=1),
            nn.PReLU(6),
            nn.MaxPool2d((2, 1)),
            nn.Conv2d(6, 7, 3, padding=1),
            nn.BatchNorm2d(7),
            nn.Hardswish(),
            nn.AvgPool2d(3, (2, 1), 1),
        )
        self.rnn = nn.GRU(7 * 4, HIDDEN, num_layers=2, bidirectional=True)
        self.fc = nn.Linear(2 * HIDDEN, CLASSES)

    def forward(self, x):
        y = self.cnn(x)  # (B, C, H, W)
        y = y.flatten(1, 2).permute(2, 0, 1)
        return self.fc(self.rnn(y)[0]).log_softmax(-1)  # (W, B, classes), as CTC wants it


def torch_model() -> nn.Module:
    return draw(CRNN())


def inputs() -> Any:
    x = np.random.default_rng(0).standard_normal((3, 1, 16, 13)).astype(np.float32)
    return {"torch": (x,), "jax": (x[:, 0],)}


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Cell:
    """The three gates as an axis, (3, hidden, in)."""

    u: jax.Array
    w: jax.Array
    c: jax.Array
    b: jax.Array

    def step(self, h, x):
        i = jnp.einsum("ghi,bi->gbh", self.u, x) + self.c[:, None]
        j = jnp.einsum("ghi,bi->gbh", self.w, h) + self.b[:, None]
        r, z = jax.nn.sigmoid(i[:2] + j[:2])
        n = jnp.tanh(i[2] + r * j[2])
        h = (1 - z) * n + z * h
        return h, h

    def run(self, xs, reverse=False):
        start = jnp.zeros((xs.shape[1], self.w.shape[-1]), xs.dtype)
        return jax.lax.scan(self.step, start, xs, reverse=reverse)[1]


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class UpdateFirst(Cell):
    """The gates z, r, n, as TensorFlow has them."""

    def step(self, h, x):
        i = jnp.einsum("ghi,bi->gbh", self.u, x) + self.c[:, None]
        j = jnp.einsum("ghi,bi->gbh", self.w, h) + self.b[:, None]
        z, r = jax.nn.sigmoid(i[:2] + j[:2])
        h = (1 - z) * jnp.tanh(i[2] + r * j[2]) + z * h
        return h, h


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class OldKept(Cell):
    """z and 1 - z swapped, as in the first paper."""

    def step(self, h, x):
        i = jnp.einsum("ghi,bi->gbh", self.u, x) + self.c[:, None]
        j = jnp.einsum("ghi,bi->gbh", self.w, h) + self.b[:, None]
        r, z = jax.nn.sigmoid(i[:2] + j[:2])
        h = z * jnp.tanh(i[2] + r * j[2]) + (1 - z) * h
        return h, h


@dataclasses.dataclass(frozen=True)
class Options:
    heights_first: bool = False
    pads_counted: bool = True
    kept_back: bool = True
    slope: bool = True
    back_first: bool = False


@partial(jax.tree_util.register_dataclass, data_fields=["p", "cells"], meta_fields=["options"])
@dataclasses.dataclass
class Reader:
    p: dict[str, jax.Array]
    cells: list[tuple[Cell, Cell]]
    options: Options

    def conv(self, x, i):
        y = jax.lax.conv(x, self.p[f"k{i}"], (1, 1), "SAME")
        return y + self.p[f"b{i}"][:, None, None]

    def __call__(self, image):
        p = self.p
        x = self.conv(image[:, None], 0)
        slope = p["slope"][:, None, None] if self.options.slope else 0.25
        x = jnp.maximum(x, 0) + slope * jnp.minimum(x, 0)
        x = x.reshape(*x.shape[:2], -1, 2, x.shape[-1]).max(3)
        x = self.conv(x, 3)
        scale = p["gain"] / jnp.sqrt(p["var"] + 1e-5)
        x = (x - p["mean"][:, None, None]) * scale[:, None, None] + p["shift"][:, None, None]
        x = jax.nn.hard_swish(x)
        window = ((1, 1, 3, 3), (1, 1, 2, 1), ((0, 0), (0, 0), (1, 1), (1, 1)))
        sums = jax.lax.reduce_window(x, 0.0, jax.lax.add, *window)
        if self.options.pads_counted:
            x = sums / 9
        else:
            x = sums / jax.lax.reduce_window(jnp.ones_like(x), 0.0, jax.lax.add, *window)
        x = x.transpose(3, 0, 2, 1) if self.options.heights_first else x.transpose(3, 0, 1, 2)
        x = x.reshape(*x.shape[:2], -1)
        for forth, back in self.cells:
            first = forth.run(x)
            kept = self.options.kept_back
            second = back.run(x, reverse=True) if kept else back.run(x[::-1])
            pair = (second, first) if self.options.back_first else (first, second)
            x = jnp.concatenate(pair, -1)
        return jax.nn.log_softmax(x @ p["w"].T + p["b"])


def port(w: Any, cell: type[Cell] = Cell, **options: Any) -> Any:
    w = {name: jnp.asarray(x) for name, x in w.items()}
    names = {
        "k0": "cnn.0.weight",
        "b0": "cnn.0.bias",
        "slope": "cnn.1.weight",
        "k3": "cnn.3.weight",
        "b3": "cnn.3.bias",
        "gain": "cnn.4.weight",
        "shift": "cnn.4.bias",
        "mean": "cnn.4.running_mean",
        "var": "cnn.4.running_var",
        "w": "fc.weight",
        "b": "fc.bias",
    }

    def made(ending: str) -> Cell:
        kernels = (w[f"rnn.weight_{part}_{ending}"] for part in ("ih", "hh"))
        biases = (w[f"rnn.bias_{part}_{ending}"] for part in ("ih", "hh"))
        return cell(
            *(k.reshape(3, HIDDEN, -1) for k in kernels), *(b.reshape(3, -1) for b in biases)
        )

    cells = [(made(f"l{i}"), made(f"l{i}_reverse")) for i in range(2)]
    return Reader({mine: w[name] for mine, name in names.items()}, cells, Options(**options))


def case(name: str, *faults: Fault, **how: Any) -> Case:
    return Case(name, "pytree", torch_model, partial(port, **how), inputs, faults)


CASES = [
    case("gates as an axis"),
    case(
        "heights before channels",
        Fault("", ("flatten-order",), ("rnn",)),
        heights_first=True,
    ),
    case("pads not counted", Fault("cnn.6", ("pooling", "padding")), pads_counted=False),
    case(
        "the way back left reversed",
        Fault("rnn", ("token-order", "wrong-source")),
        kept_back=False,
    ),
    case("update gate first", Fault("rnn", ("gate-order", "gate-swap")), cell=UpdateFirst),
    case("old state and new swapped", Fault("rnn", ("gate-swap", "gate-order")), cell=OldKept),
]
