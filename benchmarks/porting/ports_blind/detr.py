"""A DETR with sine positions and learned queries; a port as a function."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.porting.case import Case, Fault, draw

WIDTH, HEADS, QUERIES, HEIGHT, BREADTH, DEPTH = 16, 2, 5, 4, 6, 2


class SinePositions(nn.Module):
    def forward(self, x):
        half = WIDTH // 2
        y, z = torch.meshgrid(
            torch.arange(1, HEIGHT + 1), torch.arange(1, BREADTH + 1), indexing="ij"
        )
        y = y / (HEIGHT + 1e-6) * 2 * math.pi
        z = z / (BREADTH + 1e-6) * 2 * math.pi
        period = 10000 ** (2 * (torch.arange(half) // 2) / half)
        y, z = (
            torch.stack([p[..., 0::2].sin(), p[..., 1::2].cos()], 3).flatten(2)
            for p in (y[..., None] / period, z[..., None] / period)
        )
        return torch.cat([y, z], 2).flatten(0, 1).to(x.dtype)


class EncoderLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.self_attn = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.linear1, self.linear2 = nn.Linear(WIDTH, 27), nn.Linear(27, WIDTH)
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)

    def forward(self, x, pos):
        q = x + pos
        x = self.norm1(x + self.self_attn(q, q, x, need_weights=False)[0])
        return self.norm2(x + self.linear2(F.relu(self.linear1(x))))


class DecoderLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.self_attn = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.cross_attn = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.linear1, self.linear2 = nn.Linear(WIDTH, 27), nn.Linear(27, WIDTH)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(WIDTH) for _ in range(3))

    def forward(self, x, memory, pos, query_pos):
        q = x + query_pos
        x = self.norm1(x + self.self_attn(q, q, x, need_weights=False)[0])
        y = self.cross_attn(x + query_pos, memory + pos, memory, need_weights=False)[0]
        x = self.norm2(x + y)
        return self.norm3(x + self.linear2(F.relu(self.linear1(x))))


class MLP(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(
            [nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 4)]
        )

    def forward(self, x):
        for i, layer in enumerate(self.layers):
            x = F.relu(layer(x)) if i < 2 else layer(x)
        return x


class DETR(nn.Module):
    def __init__(self):
        super().__init__()
        self.input_proj, self.position = nn.Conv2d(7, WIDTH, 1), SinePositions()
        self.query_embed = nn.Embedding(QUERIES, WIDTH)
        self.encoder = nn.ModuleList(EncoderLayer() for _ in range(DEPTH))
        self.decoder = nn.ModuleList(DecoderLayer() for _ in range(DEPTH))
        self.norm = nn.LayerNorm(WIDTH)
        self.class_embed, self.bbox_embed = nn.Linear(WIDTH, 6), MLP()

    def forward(self, features):
        x = self.input_proj(features).flatten(2).transpose(1, 2)
        pos = self.position(x)
        for layer in self.encoder:
            x = layer(x, pos)
        queries = self.query_embed.weight.expand(len(x), -1, -1)
        y = torch.zeros_like(queries)
        for layer in self.decoder:
            y = layer(y, x, pos, queries)
        y = self.norm(y)
        return {"pred_logits": self.class_embed(y), "pred_boxes": self.bbox_embed(y).sigmoid()}


def torch_model() -> nn.Module:
    return draw(DETR())


def inputs() -> Any:
    x = np.random.default_rng(0).standard_normal((2, 7, HEIGHT, BREADTH)).astype(np.float32)
    return {"torch": {"features": x}, "jax": {"features": x.transpose(0, 2, 3, 1)}}


def waves(count: int, pairs: Any, temperature: float, scale: float) -> np.ndarray:
    place = np.arange(1, count + 1) / (count + 1e-6) * scale
    period = temperature ** (np.arange(WIDTH // 4) * 4 / WIDTH)
    angle = place[:, None] / period
    return np.stack([f(angle) for f in pairs], axis=-1).reshape(count, -1)


def sine_table(
    pairs: Any = (np.sin, np.cos),
    temperature: float = 10000.0,
    rows_first: bool = True,
    scale: float = 2 * math.pi,
) -> np.ndarray:
    """(places, width): PyTorch's table is float32."""
    y, x = (waves(n, pairs, temperature, scale) for n in (HEIGHT, BREADTH))
    y = np.broadcast_to(y[:, None], (HEIGHT, BREADTH, WIDTH // 2))
    x = np.broadcast_to(x, y.shape)
    both = np.concatenate([y, x] if rows_first else [x, y], axis=-1)
    return both.reshape(-1, WIDTH).astype(np.float32)


def grow(w: Any) -> Any:
    tree: dict[str, Any] = {}
    for name, x in w.items():
        *path, last = name.split(".")
        here = tree
        for step in path:
            here = here.setdefault(step, {})
        here[last] = jnp.asarray(x)
    return tree


def affine(p: Any, x: jax.Array) -> jax.Array:
    return jnp.tensordot(x, p["weight"], axes=[[-1], [1]]) + p["bias"]


def norm(p: Any, x: jax.Array) -> jax.Array:
    centred = x - x.mean(-1, keepdims=True)
    variance = jnp.square(centred).mean(-1, keepdims=True)
    return centred / jnp.sqrt(variance + 1e-5) * p["weight"] + p["bias"]


def attention(p: Any, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Of one example: (n, width), (m, width), (m, width)."""
    q, k, v = (
        (x @ w.T + b).reshape(len(x), HEADS, -1)
        for x, w, b in zip(
            (q, k, v),
            jnp.split(p["in_proj_weight"], 3),
            jnp.split(p["in_proj_bias"], 3),
            strict=True,
        )
    )
    scores = jnp.einsum("nhd,mhd->hnm", q, k) / math.sqrt(WIDTH / HEADS)
    y = jnp.einsum("hnm,mhd->nhd", jax.nn.softmax(scores), v)
    return affine(p["out_proj"], y.reshape(len(q), -1))


def ffn(p: Any, x: jax.Array) -> jax.Array:
    return affine(p["linear2"], jax.nn.relu(affine(p["linear1"], x)))


def detr(
    params: Any,
    features: jax.Array,
    table: Any = sine_table,
    values: bool = False,
    from_queries: bool = False,
    keyed: bool = True,
    box: Any = jax.nn.sigmoid,
    skip: bool = True,
) -> Any:
    pos = table()
    queries = params["query_embed"]["weight"]
    project = params["input_proj"]

    def one(image: jax.Array) -> Any:
        x = jnp.einsum("hwc,dc->hwd", image, project["weight"][..., 0, 0]) + project["bias"]
        x = x.reshape(-1, WIDTH)
        for p in params["encoder"].values():
            q = x + pos
            x = norm(p["norm1"], x + attention(p["self_attn"], q, q, q if values else x))
            x = norm(p["norm2"], x + ffn(p, x))
        y = queries if from_queries else jnp.zeros_like(queries)
        for p in params["decoder"].values():
            q = y + queries
            y = norm(p["norm1"], y + attention(p["self_attn"], q, q, y))
            keys = x + pos if keyed else x
            z = attention(p["cross_attn"], y + queries, keys, x)
            y = norm(p["norm2"], y + z if skip else z)
            y = norm(p["norm3"], y + ffn(p, y))
        y = norm(params["norm"], y)
        b = y
        for i in range(3):
            b = affine(params["bbox_embed"]["layers"][str(i)], b)
            b = jax.nn.relu(b) if i < 2 else box(b)
        return {"pred_logits": affine(params["class_embed"], y), "pred_boxes": b}

    return jax.vmap(one)(features)


def case(name: str, *faults: Fault, **how: Any) -> Case:
    return Case(
        name,
        "function",
        torch_model,
        lambda w: (partial(detr, **how), grow(w)),
        inputs,
        faults,
        float32=True,
    )


CASES = [
    case("one image at a time"),
    case(
        "cosines first",
        Fault("position", ("sin-cos-order",)),
        table=partial(sine_table, pairs=(np.cos, np.sin)),
    ),
    case(
        "a temperature of twenty",
        Fault("position", ("frequencies", "rotary-base")),
        table=partial(sine_table, temperature=20.0),
    ),
    case(
        "positions in the values too",
        Fault("encoder.*.self_attn", ("wrong-source",), ("encoder.?",)),
        values=True,
    ),
    case(
        "the decoder starts from its queries",
        Fault("", ("wrong-source",), ("decoder.0",)),
        from_queries=True,
    ),
    case(
        "boxes not squashed, keys without positions",
        Fault(
            "decoder.*.cross_attn",
            ("wrong-source", "position-missing", "position-bias"),
            ("decoder.?",),
        ),
        Fault("", ("activation-missing",)),
        keyed=False,
        box=lambda x: x,
    ),
    case("no residual around the memory", Fault("decoder.?", ("residual",)), skip=False),
]
