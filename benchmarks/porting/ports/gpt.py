"""A small GPT in plain PyTorch; a port as a function of a list of dictionaries."""

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

VOCAB, CONTEXT, WIDTH, HEADS = 53, 24, 20, 4


class SelfAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.c_attn = nn.Linear(WIDTH, 3 * WIDTH)
        self.c_proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        B, T, C = x.shape
        q, k, v = self.c_attn(x).split(C, dim=2)
        q, k, v = (y.view(B, T, HEADS, C // HEADS).transpose(1, 2) for y in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(y.transpose(1, 2).reshape(B, T, C))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.ln_1 = nn.LayerNorm(WIDTH)
        self.attn = SelfAttention()
        self.ln_2 = nn.LayerNorm(WIDTH)
        self.mlp = nn.Sequential(
            nn.Linear(WIDTH, 3 * WIDTH), nn.GELU(approximate="tanh"), nn.Linear(3 * WIDTH, WIDTH)
        )

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    """Logits, and the loss where there are targets."""

    def __init__(self):
        super().__init__()
        self.wte = nn.Embedding(VOCAB, WIDTH)
        self.wpe = nn.Embedding(CONTEXT, WIDTH)
        self.h = nn.ModuleList(Block() for _ in range(3))
        self.ln_f = nn.LayerNorm(WIDTH)

    def forward(self, idx, targets=None):
        x = self.wte(idx) + self.wpe(torch.arange(idx.shape[1]))
        for block in self.h:
            x = block(x)
        logits = self.ln_f(x) @ self.wte.weight.T
        if targets is None:
            return logits
        return logits, F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100)


def torch_model() -> nn.Module:
    return draw(GPT())


def inputs() -> Any:
    return {"idx": np.random.default_rng(0).integers(0, VOCAB, (3, 17))}


def with_targets() -> Any:
    rng = np.random.default_rng(1)
    targets = rng.integers(0, VOCAB, (3, 17))
    return {**inputs(), "targets": np.where(rng.random((3, 17)) < 0.2, -100, targets)}


def convert(w: Any) -> Any:
    w = {name: jnp.asarray(x) for name, x in w.items()}

    def dense(name: str) -> Any:
        return {"w": w[f"{name}.weight"].T, "b": w[f"{name}.bias"]}

    def norm(name: str) -> Any:
        return {"g": w[f"{name}.weight"], "b": w[f"{name}.bias"]}

    blocks = [
        {
            "norm1": norm(f"h.{i}.ln_1"),
            "qkv": dense(f"h.{i}.attn.c_attn"),
            "out": dense(f"h.{i}.attn.c_proj"),
            "norm2": norm(f"h.{i}.ln_2"),
            "fc": dense(f"h.{i}.mlp.0"),
            "proj": dense(f"h.{i}.mlp.2"),
        }
        for i in range(3)
    ]
    return {
        "tok": w["wte.weight"],
        "pos": w["wpe.weight"],
        "blocks": blocks,
        "norm": norm("ln_f"),
    }


def linear(p: Any, x: jax.Array) -> jax.Array:
    return x @ p["w"] + p["b"]


def layer_norm(p: Any, x: jax.Array) -> jax.Array:
    mean = x.mean(-1, keepdims=True)
    var = ((x - mean) ** 2).mean(-1, keepdims=True)
    return p["g"] * (x - mean) / jnp.sqrt(var + 1e-5) + p["b"]


def causal(T: int) -> jax.Array:
    return jnp.where(jnp.arange(T)[:, None] >= jnp.arange(T), 0.0, -jnp.inf)


def attend(p: Any, x: jax.Array, bias: jax.Array, scale: float) -> jax.Array:
    B, T, C = x.shape
    q, k, v = linear(p["qkv"], x).reshape(B, T, 3, HEADS, C // HEADS).transpose(2, 0, 3, 1, 4)
    probs = jax.nn.softmax(q @ k.swapaxes(-1, -2) * scale + bias)
    return linear(p["out"], (probs @ v).swapaxes(1, 2).reshape(B, T, C))


def mean_loss(logits: jax.Array, targets: jax.Array) -> jax.Array:
    logp = jax.nn.log_softmax(logits)
    picked = jnp.take_along_axis(logp, jnp.maximum(targets, 0)[..., None], -1)[..., 0]
    return -jnp.sum(picked * (targets != -100)) / jnp.sum(targets != -100)


def gpt(
    params: Any,
    idx: jax.Array,
    targets: jax.Array | None = None,
    *,
    bias: Any = causal,
    scale: float = 1 / math.sqrt(WIDTH // HEADS),
    first: int = 0,
    loss: Any = mean_loss,
    attention: Any = attend,
    head: Any = lambda table: table,
) -> Any:
    T = idx.shape[1]
    x = params["tok"][idx] + params["pos"][first : first + T]
    mask = bias(T)
    for p in params["blocks"]:
        x = x + attention(p, layer_norm(p["norm1"], x), mask, scale)
        x = x + linear(p["proj"], jax.nn.gelu(linear(p["fc"], layer_norm(p["norm2"], x))))
    logits = jnp.einsum("btd,vd->btv", layer_norm(params["norm"], x), head(params["tok"]))
    return logits if targets is None else (logits, loss(logits, targets))


def with_dropout(p: Any, x: jax.Array, bias: jax.Array, scale: float) -> jax.Array:
    """A rate of 0.1 that no evaluation turns off."""
    y = attend(p, x, bias, scale)
    keep = jax.random.bernoulli(jax.random.key(7), 0.9, y.shape)
    return jnp.where(keep, y / 0.9, 0)


def case(name: str, *faults: Fault, data: Any = inputs, **changes: Any) -> Case:
    return Case(
        name,
        "function",
        torch_model,
        lambda w: (partial(gpt, **changes), convert(w)),
        data,
        faults,
    )


CASES = [
    case("with loss", data=with_targets),
    case(
        "attends to the next token",
        Fault("h.*.attn", ("mask-shifted",)),
        bias=lambda T: jnp.where(jnp.arange(T)[:, None] + 1 >= jnp.arange(T), 0.0, -jnp.inf),
    ),
    case("positions from one", Fault("wpe", ("position-offset",), ("",)), first=1),
    case(
        "loss of the token after the next",
        Fault("", ("label-shift",)),
        data=with_targets,
        loss=lambda logits, targets: mean_loss(logits[:, :-1], targets[:, 1:]),
    ),
    case(
        "dropout that stays on",
        Fault("h.*.attn", ("dropout-on",), ("h.*.attn.c_proj", "h.*")),
        attention=with_dropout,
    ),
    case(
        "no gradient through the head",
        Fault("", ("stopped-gradient",), ("wte",)),
        head=jax.lax.stop_gradient,
    ),
]
