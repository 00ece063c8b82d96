"""A Perceiver over a padded set of features; a port as a function, vmapped over the batch."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import nn

from benchmarks.porting.case import Case, Fault, draw

FEATURES, WIDTH, HEADS, LATENTS, DEPTH = 10, 18, 3, 5, 3


class Attention(nn.Module):
    """Latents to a context, which is the latents themselves if none is given."""

    def __init__(self, width, context):
        super().__init__()
        self.norm, self.norm_context = nn.LayerNorm(width), nn.LayerNorm(context)
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_kv = nn.Linear(context, 2 * width, bias=False)
        self.to_out = nn.Linear(width, width)

    def forward(self, x, context=None, mask=None):
        x = self.norm(x)
        context = self.norm_context(x if context is None else context)
        q = self.to_q(x).unflatten(-1, (HEADS, -1)).transpose(1, 2)
        k, v = self.to_kv(context).chunk(2, dim=-1)
        k, v = (y.unflatten(-1, (HEADS, -1)).transpose(1, 2) for y in (k, v))
        scores = torch.einsum("bhid,bhjd->bhij", q, k) * q.shape[-1] ** -0.5
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None, None], -torch.finfo(scores.dtype).max)
        y = torch.einsum("bhij,bhjd->bhid", scores.softmax(dim=-1), v)
        return self.to_out(y.transpose(1, 2).flatten(2))


class GEGLU(nn.Module):
    def forward(self, x):
        x, gates = x.chunk(2, dim=-1)
        return x * nn.functional.gelu(gates)


class FeedForward(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.net = nn.Sequential(nn.Linear(width, 4 * width), GEGLU(), nn.Linear(2 * width, width))

    def forward(self, x):
        return self.net(self.norm(x))


class Perceiver(nn.Module):
    def __init__(self):
        super().__init__()
        self.latents = nn.Parameter(torch.zeros(LATENTS, WIDTH))
        self.layers = nn.ModuleList(
            nn.ModuleDict(
                {
                    "cross": Attention(WIDTH, FEATURES),
                    "cross_ff": FeedForward(WIDTH),
                    "self": Attention(WIDTH, WIDTH),
                    "self_ff": FeedForward(WIDTH),
                }
            )
            for _ in range(DEPTH)
        )
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 4)

    def forward(self, data, mask):
        x = self.latents.expand(len(data), -1, -1)
        for layer in self.layers:
            x = layer["cross"](x, data, mask) + x
            x = layer["cross_ff"](x) + x
            x = layer["self"](x) + x
            x = layer["self_ff"](x) + x
        return self.head(self.norm(x.mean(dim=1)))


def torch_model() -> nn.Module:
    return draw(Perceiver())


def inputs() -> Any:
    data = np.random.default_rng(0).standard_normal((3, 13, FEATURES)).astype(np.float32)
    return {"data": data, "mask": np.arange(13) < np.array([[13], [8], [5]])}


def convert(w: Any) -> Any:
    tree: dict[str, Any] = {}
    for name, x in w.items():
        *path, last = name.split(".")
        here = tree
        for step in path:
            here = here.setdefault(step, {})
        here[last] = jnp.asarray(x)
    return tree


def ln(p: Any, x: jax.Array) -> jax.Array:
    mu = jnp.mean(x, -1, keepdims=True)
    return (x - mu) * jax.lax.rsqrt(jnp.var(x, -1, keepdims=True) + 1e-5) * p["weight"] + p["bias"]


def heads(x: jax.Array) -> jax.Array:
    return x.reshape(len(x), HEADS, -1)


def interleaved(x: jax.Array) -> jax.Array:
    return x.reshape(len(x), -1, HEADS).swapaxes(1, 2)


def rows(scores: jax.Array) -> jax.Array:
    return jax.nn.softmax(scores, axis=-1)


def attention(
    p: Any,
    x: jax.Array,
    context: jax.Array | None,
    keep: jax.Array | None,
    soft: Any = rows,
    group: Any = heads,
    same_norm: bool = True,
    scale: float | None = None,
) -> jax.Array:
    """Of one example: (n, width) to (m, features)."""
    raw, x = x, ln(p["norm"], x)
    if context is None:
        context = x if same_norm else raw
    c = ln(p["norm_context"], context)
    k, v = jnp.split(c @ p["to_kv"]["weight"].T, 2, axis=-1)
    q = group(x @ p["to_q"]["weight"].T)
    scores = jnp.einsum("nhd,mhd->hnm", q, group(k)) * (scale or q.shape[-1] ** -0.5)
    if keep is not None:
        scores = jnp.where(keep, scores, jnp.finfo(scores.dtype).min)
    y = jnp.einsum("hnm,mhd->nhd", soft(scores), group(v)).reshape(len(x), -1)
    return y @ p["to_out"]["weight"].T + p["to_out"]["bias"]


def feed(p: Any, x: jax.Array, swap: bool = False) -> jax.Array:
    h = ln(p["norm"], x) @ p["net"]["0"]["weight"].T + p["net"]["0"]["bias"]
    a, b = jnp.split(h, 2, axis=-1)
    h = jax.nn.gelu(a, approximate=False) * b if swap else a * jax.nn.gelu(b, approximate=False)
    return h @ p["net"]["2"]["weight"].T + p["net"]["2"]["bias"]


def perceiver(
    params: Any,
    data: jax.Array,
    mask: jax.Array,
    invert: bool = False,
    swap: bool = False,
    cross: Any = attention,
    inner: Any = attention,
) -> jax.Array:
    def one(data: jax.Array, keep: jax.Array) -> jax.Array:
        x = params["latents"]
        for i in range(DEPTH):
            p = params["layers"][str(i)]
            x = x + cross(p["cross"], x, data, ~keep if invert else keep)
            x = x + feed(p["cross_ff"], x, swap)
            x = x + inner(p["self"], x, None, None)
            x = x + feed(p["self_ff"], x, swap)
        x = ln(params["norm"], x.mean(0))
        return params["head"]["weight"] @ x + params["head"]["bias"]

    return jax.vmap(one)(data, mask)


def case(name: str, *faults: Fault, **how: Any) -> Case:
    return Case(
        name,
        "function",
        torch_model,
        lambda w: (partial(perceiver, **how), convert(w)),
        inputs,
        faults,
    )


CASES = [
    case("vmapped over examples"),
    case("padding seen, data not", Fault("layers.*.cross", ("mask-inverted",)), invert=True),
    case(
        "softmax over the latents",
        Fault("layers.*.self", ("softmax-axis",)),
        inner=partial(attention, soft=partial(jax.nn.softmax, axis=-2)),
    ),
]
