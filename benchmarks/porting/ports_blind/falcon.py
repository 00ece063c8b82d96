"""A decoder with ALiBi, grouped queries and parallel MLPs; a port as a callable pytree."""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import nn

from benchmarks.porting.case import Case, Fault, draw

VOCAB, WIDTH, HEADS, GROUPS, DEPTH = 43, 24, 4, 2, 3
SIZE = WIDTH // HEADS


class Attention(nn.Module):
    """The fused projection holds for each group its queries, a key and a value."""

    def __init__(self):
        super().__init__()
        self.query_key_value = nn.Linear(WIDTH, (HEADS + 2 * GROUPS) * SIZE, bias=False)
        self.dense = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x, bias):
        B, T, _ = x.shape
        qkv = self.query_key_value(x).view(B, T, GROUPS, HEADS // GROUPS + 2, SIZE)
        q = qkv[..., :-2, :].flatten(2, 3).transpose(1, 2)
        k, v = (
            y.broadcast_to(B, T, GROUPS, HEADS // GROUPS, SIZE).flatten(2, 3).transpose(1, 2)
            for y in (qkv[..., -2:-1, :], qkv[..., -1:, :])
        )
        scores = (q @ k.transpose(-1, -2)) / math.sqrt(SIZE) + bias
        return self.dense((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


class DecoderLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.ln_attn, self.ln_mlp = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.self_attention = Attention()
        self.mlp = nn.Sequential(
            nn.Linear(WIDTH, 37, bias=False), nn.GELU(), nn.Linear(37, WIDTH, bias=False)
        )

    def forward(self, x, bias):
        return x + self.self_attention(self.ln_attn(x), bias) + self.mlp(self.ln_mlp(x))


class Falcon(nn.Module):
    def __init__(self):
        super().__init__()
        self.word_embeddings = nn.Embedding(VOCAB, WIDTH)
        self.h = nn.ModuleList(DecoderLayer() for _ in range(DEPTH))
        self.ln_f, self.lm_head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCAB, bias=False)
        self.lm_head.weight = self.word_embeddings.weight

    def forward(self, tokens):
        T = tokens.shape[1]
        slopes = 2.0 ** (-8.0 * torch.arange(1, HEADS + 1) / HEADS)
        apart = torch.arange(T) - torch.arange(T)[:, None]
        x = self.word_embeddings(tokens)
        bias = slopes[:, None, None].to(x.dtype) * apart
        bias = bias.masked_fill(apart > 0, float("-inf"))
        for layer in self.h:
            x = layer(x, bias)
        return self.lm_head(self.ln_f(x))


def torch_model() -> nn.Module:
    return draw(Falcon())


def inputs() -> Any:
    return (np.random.default_rng(0).integers(0, VOCAB, (2, 14)),)


def node(*static: str) -> Callable[[type], type]:
    def register(cls: type) -> type:
        cls = dataclasses.dataclass(cls)
        names = [field.name for field in dataclasses.fields(cls)]
        return jax.tree_util.register_dataclass(
            cls, [name for name in names if name not in static], list(static)
        )

    return register


@node("eps")
class LN:
    gain: jax.Array
    shift: jax.Array
    eps: float = 1e-5

    def __call__(self, x):
        x32 = x - jnp.mean(x, axis=-1, keepdims=True)
        return x32 / jnp.sqrt(jnp.mean(x32**2, axis=-1, keepdims=True) + self.eps) * self.gain + (
            self.shift
        )


def alibi(length: int, rate: float = 8.0) -> jax.Array:
    """(groups, heads of a group, queries, keys)."""
    slopes = jnp.exp2(-rate * jnp.arange(1, HEADS + 1) / HEADS).reshape(GROUPS, -1, 1, 1)
    return slopes * (jnp.arange(length) - jnp.arange(length)[:, None])


@node("fill", "rate", "scale", "share")
class GroupedAttention:
    wq: jax.Array  # (groups, heads of a group, size, width)
    wk: jax.Array  # (groups, size, width)
    wv: jax.Array
    wo: jax.Array
    fill: float
    rate: float
    scale: float
    share: str

    def __call__(self, x):
        T = x.shape[1]
        q = jnp.einsum("btd,gnkd->bgntk", x, self.wq)
        k, v = (jnp.einsum("btd,gkd->bgtk", x, w) for w in (self.wk, self.wv))
        if self.share == "tile":
            # The queries of head h see group h % GROUPS.
            q = q.reshape(len(x), -1, GROUPS, T, SIZE).swapaxes(1, 2)
        scores = jnp.einsum("bgntk,bgsk->bgnts", q, k) * self.scale
        if self.share == "tile":
            scores = scores.swapaxes(1, 2).reshape(len(x), GROUPS, -1, T, T)
        scores = scores + alibi(T, self.rate)
        scores = jnp.where(jnp.tri(T, dtype=bool), scores, self.fill)
        probs = jax.nn.softmax(scores, axis=-1)
        if self.share == "tile":
            probs = probs.reshape(len(x), -1, GROUPS, T, T).swapaxes(1, 2)
        y = jnp.einsum("bgnts,bgsk->bgntk", probs, v)
        if self.share == "tile":
            y = y.swapaxes(1, 2).reshape(len(x), GROUPS, -1, T, SIZE)
        return y.transpose(0, 3, 1, 2, 4).reshape(x.shape) @ self.wo.T


@node("parallel")
class Layer:
    norm_a: LN
    norm_m: LN
    attention: GroupedAttention
    up: jax.Array
    down: jax.Array
    parallel: bool

    def mlp(self, x):
        return jax.nn.gelu(x @ self.up.T, approximate=False) @ self.down.T

    def __call__(self, x):
        y = x + self.attention(self.norm_a(x))
        return y + self.mlp(self.norm_m(x if self.parallel else y))


@node()
class Decoder:
    table: jax.Array
    layers: tuple[Layer, ...]
    norm: LN

    def __call__(self, tokens):
        x = self.table[tokens]
        for layer in self.layers:
            x = layer(x)
        return self.norm(x) @ self.table.T


def port(
    w: Any,
    parallel: bool = True,
    blocks: bool = False,
    fill: float = -jnp.inf,
    rate: float = 8.0,
    scale: float = SIZE**-0.5,
    share: str = "repeat",
) -> Any:
    w = {name: jnp.asarray(x) for name, x in w.items()}

    def norm(name: str) -> LN:
        return LN(w[f"{name}.weight"], w[f"{name}.bias"])

    def split(fused: jax.Array) -> Any:
        if blocks:  # all queries, then all keys, then all values
            q, k, v = jnp.split(fused, (WIDTH, WIDTH + GROUPS * SIZE))
            k, v = (y.reshape(GROUPS, SIZE, WIDTH) for y in (k, v))
            return q.reshape(GROUPS, -1, SIZE, WIDTH), k, v
        fused = fused.reshape(GROUPS, -1, SIZE, WIDTH)
        return fused[:, :-2], fused[:, -2], fused[:, -1]

    def layer(name: str) -> Layer:
        attention = GroupedAttention(
            *split(w[f"{name}.self_attention.query_key_value.weight"]),
            w[f"{name}.self_attention.dense.weight"],
            fill,
            rate,
            scale,
            share,
        )
        up, down = w[f"{name}.mlp.0.weight"], w[f"{name}.mlp.2.weight"]
        return Layer(norm(f"{name}.ln_attn"), norm(f"{name}.ln_mlp"), attention, up, down, parallel)

    layers = tuple(layer(f"h.{i}") for i in range(DEPTH))
    return Decoder(w["word_embeddings.weight"], layers, norm("ln_f"))


def case(name: str, *faults: Fault, **how: Any) -> Case:
    return Case(name, "pytree", torch_model, partial(port, **how), inputs, faults)


ATTENTION = "h.*.self_attention"
CASES = [
    case("groups as an axis"),
    case(
        "fused by kind, not by group",
        Fault(f"{ATTENTION}.query_key_value", ("qkv-order",), (ATTENTION,), in_weights=True),
        blocks=True,
    ),
    case("the MLP after the attention", Fault("h.?", ("wrong-source", "residual")), parallel=False),
    case(
        "slopes of twice as many heads",
        Fault(ATTENTION, ("position-bias", "frequencies"), ("",)),
        rate=4.0,
    ),
    case("scores divided by the size", Fault(ATTENTION, ("scale-extra",)), scale=1 / SIZE),
    case("groups in turns", Fault(ATTENTION, ("kv-repeat", "head-order")), share="tile"),
    case("future filled with zero", Fault(ATTENTION, ("mask-fill",), ("",)), fill=0.0),
]
