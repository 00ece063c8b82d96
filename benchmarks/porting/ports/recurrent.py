"""An LSTM tagger and a GRU classifier; ports that scan over time."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from torch import nn

from benchmarks.porting.case import Case, Fault, draw

VOCAB, WIDTH, HIDDEN = 31, 9, 14


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(VOCAB, WIDTH)
        self.lstm = nn.LSTM(WIDTH, HIDDEN, num_layers=2, batch_first=True)
        self.out = nn.Linear(HIDDEN, 7)

    def forward(self, tokens):
        return self.out(self.lstm(self.embed(tokens))[0])


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(WIDTH, HIDDEN, batch_first=True, bidirectional=True)
        self.out = nn.Linear(2 * HIDDEN, 5)

    def forward(self, x):
        hidden = self.gru(x)[1]  # the last states, (2, B, H)
        return self.out(hidden.transpose(0, 1).flatten(1))


def tagger() -> nn.Module:
    return draw(Tagger())


def classifier() -> nn.Module:
    return draw(Classifier())


def tokens() -> Any:
    return (np.random.default_rng(0).integers(0, VOCAB, (3, 13)),)


def signal() -> Any:
    return (np.random.default_rng(0).standard_normal((3, 13, WIDTH)).astype(np.float32),)


def cell(order: str, params: Any, carry: Any, x: jax.Array) -> Any:
    """One step; one kernel for [x, h] and one bias, the sum of PyTorch's two."""
    h, c = carry
    gates = jnp.concatenate([x, h], -1) @ params["kernel"] + params["bias"]
    g = dict(zip(order, jnp.split(gates, 4, axis=-1), strict=True))
    c = jax.nn.sigmoid(g["f"]) * c + jax.nn.sigmoid(g["i"]) * jnp.tanh(g["g"])
    h = jax.nn.sigmoid(g["o"]) * jnp.tanh(c)
    return (h, c), h


def tag(params: Any, tokens: jax.Array, order: str = "ifgo") -> jax.Array:
    x = params["table"][tokens].swapaxes(0, 1)
    for layer in params["layers"]:
        start = jnp.zeros((x.shape[1], HIDDEN), x.dtype)
        x = jax.lax.scan(partial(cell, order, layer), (start, start), x)[1]
    return x.swapaxes(0, 1) @ params["out"]["kernel"] + params["out"]["bias"]


def tagger_port(w: Any, order: str = "ifgo", both: bool = True) -> Any:
    w = {name: jnp.asarray(x) for name, x in w.items()}
    layers = [
        {
            "kernel": jnp.concatenate([w[f"lstm.weight_ih_l{i}"], w[f"lstm.weight_hh_l{i}"]], 1).T,
            "bias": w[f"lstm.bias_ih_l{i}"] + (w[f"lstm.bias_hh_l{i}"] if both else 0),
        }
        for i in range(2)
    ]
    out = {"kernel": w["out.weight"].T, "bias": w["out.bias"]}
    return partial(tag, order=order), {"table": w["embed.weight"], "layers": layers, "out": out}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GRU:
    w_x: jax.Array
    w_h: jax.Array
    b_x: jax.Array
    b_h: jax.Array

    def __call__(self, xs):
        def step(h, x):
            xr, xz, xn = jnp.split(self.w_x @ x + self.b_x, 3)
            hr, hz, hn = jnp.split(self.w_h @ h + self.b_h, 3)
            r, z = jax.nn.sigmoid(xr + hr), jax.nn.sigmoid(xz + hz)
            n = jnp.tanh(xn + r * hn)
            return n + z * (h - n), None

        return jax.lax.scan(step, jnp.zeros_like(self.b_h[:HIDDEN]), xs)[0]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KerasGRU(GRU):
    """The reset gate before the product, as in the paper."""

    def __call__(self, xs):
        w_r, w_z, w_n = jnp.split(self.w_h, 3)
        b_r, b_z, b_n = jnp.split(self.b_h, 3)

        def step(h, x):
            xr, xz, xn = jnp.split(self.w_x @ x + self.b_x, 3)
            r = jax.nn.sigmoid(xr + w_r @ h + b_r)
            z = jax.nn.sigmoid(xz + w_z @ h + b_z)
            n = jnp.tanh(xn + w_n @ (r * h) + b_n)
            return (1 - z) * n + z * h, None

        return jax.lax.scan(step, jnp.zeros_like(b_n), xs)[0]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BiClassifier:
    forth: GRU
    back: GRU
    kernel: jax.Array
    bias: jax.Array
    reverse: bool = dataclasses.field(default=True, metadata={"static": True})

    def __call__(self, x):
        back = x[:, ::-1] if self.reverse else x
        both = jnp.concatenate([jax.vmap(self.forth)(x), jax.vmap(self.back)(back)], -1)
        return both @ self.kernel + self.bias


def classifier_port(w: Any, kind: Any = GRU, reverse: bool = True) -> Any:
    w = {name: jnp.asarray(x) for name, x in w.items()}
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    cells = [kind(*(w[f"gru.{name}_l0{ending}"] for name in names)) for ending in ("", "_reverse")]
    return BiClassifier(*cells, w["out.weight"].T, w["out.bias"], reverse)


CASES = [
    # The sums of biases are rounded to float32.
    Case("LSTM of one kernel", "function", tagger, tagger_port, tokens, float32=True),
    Case(
        "gates in another order",
        "function",
        tagger,
        partial(tagger_port, order="ifog"),
        tokens,
        (Fault("lstm", ("gate-order",)),),
    ),
    Case(
        "one of the two biases",
        "function",
        tagger,
        partial(tagger_port, both=False),
        tokens,
        (Fault("lstm", ("bias-missing",), in_weights=True),),
    ),
    Case("GRU", "pytree", classifier, classifier_port, signal),
    Case(
        "reset before the product",
        "pytree",
        classifier,
        partial(classifier_port, kind=KerasGRU),
        signal,
        (Fault("gru", ("reset-placement",)),),
    ),
    Case(
        "the second direction not reversed",
        "pytree",
        classifier,
        partial(classifier_port, reverse=False),
        signal,
        (Fault("gru", ("token-order", "wrong-source")),),
    ),
]
