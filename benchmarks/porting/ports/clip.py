"""Two towers whose embeddings are compared; a port as callable pytrees."""

import dataclasses
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

VOCAB, LENGTH, WIDTH, HEADS, SHARED = 37, 17, 16, 4, 11


class QuickGELU(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(1.702 * x)


class ResidualAttentionBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.ln_1, self.ln_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 27), QuickGELU(), nn.Linear(27, WIDTH))

    def forward(self, x, mask):
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp(self.ln_2(x))


class Tower(nn.Module):
    def __init__(self, length):
        super().__init__()
        self.positions = nn.Parameter(torch.zeros(length, WIDTH))
        self.blocks = nn.ModuleList(ResidualAttentionBlock() for _ in range(2))
        self.ln = nn.LayerNorm(WIDTH)
        self.projection = nn.Parameter(torch.zeros(WIDTH, SHARED))

    def forward(self, x, mask=None):
        x = x + self.positions
        for block in self.blocks:
            x = block(x, mask)
        return self.ln(x)


class CLIP(nn.Module):
    def __init__(self):
        super().__init__()
        self.patches = nn.Linear(10, WIDTH, bias=False)
        self.visual = Tower(13)
        self.tokens = nn.Embedding(VOCAB, WIDTH)
        self.textual = Tower(LENGTH)
        self.logit_scale = nn.Parameter(torch.tensor(0.0))

    def forward(self, image, text):
        mask = torch.full((LENGTH, LENGTH), float("-inf")).triu(1).to(image.dtype)
        y = self.textual(self.tokens(text), mask)
        y = y[torch.arange(len(y)), text.argmax(dim=-1)] @ self.textual.projection
        x = self.visual(self.patches(image)).mean(dim=1) @ self.visual.projection
        x, y = F.normalize(x, dim=-1), F.normalize(y, dim=-1)
        logits = (self.logit_scale + math.log(5)).exp() * x @ y.T
        return logits, logits.T


def torch_model() -> nn.Module:
    return draw(CLIP())


def inputs() -> Any:
    rng = np.random.default_rng(0)
    text = rng.integers(1, VOCAB - 1, (3, LENGTH))
    text[np.arange(3), [8, 16, 11]] = VOCAB - 1  # the largest token ends a text
    return rng.standard_normal((3, 13, 10)).astype(np.float32), text


def dense(kernel: jax.Array, bias: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.einsum("...i,oi->...o", x, kernel) + bias


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Block:
    norms: Any
    qkv: Any
    out: Any
    up: Any
    down: Any

    def __call__(self, x, causal):
        heads = dense(*self.qkv, norm(*self.norms[0], x)).reshape(*x.shape[:2], 3, HEADS, -1)
        q, k, v = jnp.moveaxis(heads, 2, 0)
        y = jax.nn.dot_product_attention(q, k, v, is_causal=causal)
        x = x + dense(*self.out, y.reshape(x.shape))
        y = dense(*self.up, norm(*self.norms[1], x))
        return x + dense(*self.down, y * jax.nn.sigmoid(1.702 * y))


def norm(gain: jax.Array, bias: jax.Array, x: jax.Array) -> jax.Array:
    return jax.nn.standardize(x, epsilon=1e-5) * gain + bias


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Encoder:
    positions: jax.Array
    blocks: list[Block]
    norm: Any
    projection: jax.Array
    causal: bool = dataclasses.field(metadata={"static": True})

    def __call__(self, x):
        x = x + self.positions
        for block in self.blocks:
            x = block(x, self.causal)
        return norm(*self.norm, x)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class DualEncoder:
    embed_image: jax.Array
    image: Encoder
    embed_text: jax.Array
    text: Encoder
    log_temperature: jax.Array
    unit: bool = dataclasses.field(metadata={"static": True})
    end: str = dataclasses.field(metadata={"static": True})
    exponential: bool = dataclasses.field(metadata={"static": True})

    def __call__(self, image, text):
        x = self.image(image @ self.embed_image).mean(axis=1) @ self.image.projection
        y = self.text(jnp.take(self.embed_text, text, axis=0))
        last = text.argmax(-1) if self.end == "eot" else jnp.full(len(y), LENGTH - 1)
        y = jax.vmap(lambda row, i: row[i])(y, last) @ self.text.projection
        if self.unit:
            x, y = (z / jnp.sqrt(jnp.square(z).sum(-1, keepdims=True)) for z in (x, y))
        scale = self.log_temperature + math.log(5)
        logits = (jnp.exp(scale) if self.exponential else scale) * jnp.einsum("ie,te->it", x, y)
        return logits, logits.swapaxes(0, 1)


def port(
    w: Any, causal: bool = True, unit: bool = True, end: str = "eot", exponential: bool = True
) -> Any:
    w = {name: jnp.asarray(x) for name, x in w.items()}

    def pair(name: str) -> Any:
        return w[f"{name}weight"], w[f"{name}bias"]

    def tower(name: str, causal: bool) -> Encoder:
        blocks = [
            Block(
                (pair(f"{part}.ln_1."), pair(f"{part}.ln_2.")),
                pair(f"{part}.attn.in_proj_"),
                pair(f"{part}.attn.out_proj."),
                pair(f"{part}.mlp.0."),
                pair(f"{part}.mlp.2."),
            )
            for part in (f"{name}.blocks.0", f"{name}.blocks.1")
        ]
        return Encoder(
            w[f"{name}.positions"], blocks, pair(f"{name}.ln."), w[f"{name}.projection"], causal
        )

    return DualEncoder(
        w["patches.weight"].T,
        tower("visual", False),
        w["tokens.weight"],
        tower("textual", causal),
        w["logit_scale"],
        unit,
        end,
        exponential,
    )


def case(name: str, *faults: Fault, **changes: Any) -> Case:
    # The softmax of jax.nn.dot_product_attention is in float32.
    return Case(name, "pytree", torch_model, partial(port, **changes), inputs, faults, float32=True)


CASES = [
    case("two towers"),
    case("no causal mask", Fault("textual.blocks.*.attn", ("mask-missing",)), causal=False),
    case("embeddings not normalised", Fault("", ("norm-missing",)), unit=False),
    case("last token for the end of the text", Fault("", ("pooling",)), end="last"),
    case(
        "scale not exponentiated",
        Fault("", ("output-scale", "activation-missing")),
        exponential=False,
    ),
]
