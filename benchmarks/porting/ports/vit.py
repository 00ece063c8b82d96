"""A vision transformer in PyTorch; a port in Linen, channels last, with flax's own attention."""

from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
import torch
from flax import linen
from torch import nn

from benchmarks.porting.case import Case, Fault, draw

WIDTH, HEADS, PATCH, DEPTH, CLASSES = 20, 4, 4, 3, 7


class PatchEmbed(nn.Module):
    def __init__(self):
        super().__init__()
        self.proj = nn.Conv2d(3, WIDTH, PATCH, PATCH)

    def forward(self, x):
        return self.proj(x).flatten(2).transpose(1, 2)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        B, N, C = x.shape
        q, k, v = self.qkv(x).reshape(B, N, 3, HEADS, C // HEADS).permute(2, 0, 3, 1, 4)
        attn = (q * (C // HEADS) ** -0.5 @ k.transpose(-2, -1)).softmax(dim=-1)
        return self.proj((attn @ v).transpose(1, 2).reshape(B, N, C))


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(WIDTH, 37), nn.GELU(), nn.Linear(37, WIDTH)

    def forward(self, x):
        return self.fc2(self.act(self.fc1(x)))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(WIDTH, eps=1e-6), Attention()
        self.norm2, self.mlp = nn.LayerNorm(WIDTH, eps=1e-6), Mlp()

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.patch_embed = PatchEmbed()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.pos_embed = nn.Parameter(torch.zeros(1, 13, WIDTH))
        self.blocks = nn.Sequential(*[Block() for _ in range(DEPTH)])
        self.norm = nn.LayerNorm(WIDTH, eps=1e-6)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x):
        x = self.patch_embed(x)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embed
        return self.head(self.norm(self.blocks(x))[:, 0])


def torch_model() -> nn.Module:
    return draw(VisionTransformer())


def inputs() -> Any:
    x = np.random.default_rng(0).standard_normal((3, 3, 12, 16)).astype(np.float32)
    return {"torch": (x,), "jax": (x.transpose(0, 2, 3, 1),)}


class MlpBlock(linen.Module):
    approximate: bool

    @linen.compact
    def __call__(self, x):
        width = x.shape[-1]
        x = linen.gelu(linen.Dense(37)(x), approximate=self.approximate)
        return linen.Dense(width)(x)


class Encoder1DBlock(linen.Module):
    approximate: bool

    @linen.compact
    def __call__(self, inputs):
        x = linen.LayerNorm()(inputs)
        x = inputs + linen.MultiHeadDotProductAttention(num_heads=HEADS)(x, x)
        return x + MlpBlock(self.approximate)(linen.LayerNorm()(x))


class ViT(linen.Module):
    approximate: bool = False
    class_last: bool = False
    mean: bool = False
    columns: bool = False

    @linen.compact
    def __call__(self, image):
        x = linen.Conv(WIDTH, (PATCH, PATCH), strides=PATCH, padding="VALID", name="embedding")(
            image
        )
        n, h, w, c = x.shape
        x = (x.swapaxes(1, 2) if self.columns else x).reshape(n, h * w, c)
        cls = self.param("cls", linen.initializers.zeros, (1, 1, c))
        cls = jnp.tile(cls, (n, 1, 1))
        x = jnp.concatenate([x, cls] if self.class_last else [cls, x], axis=1)
        x = x + self.param("posembed", linen.initializers.normal(0.02), (1, h * w + 1, c))
        for i in range(DEPTH):
            x = Encoder1DBlock(self.approximate, name=f"encoderblock_{i}")(x)
        x = linen.LayerNorm(name="encoder_norm")(x)
        x = x.mean(axis=1) if self.mean else x[:, -1 if self.class_last else 0]
        return linen.Dense(CLASSES, name="head")(x)


def convert(w: Any) -> Any:
    def dense(name: str) -> Any:
        return {
            "kernel": jnp.asarray(w[f"{name}.weight"].T),
            "bias": jnp.asarray(w[f"{name}.bias"]),
        }

    def norm(name: str) -> Any:
        return {"scale": jnp.asarray(w[f"{name}.weight"]), "bias": jnp.asarray(w[f"{name}.bias"])}

    def attention(name: str) -> Any:
        kernels = w[f"{name}.qkv.weight"].reshape(3, HEADS, -1, WIDTH).transpose(0, 3, 1, 2)
        biases = w[f"{name}.qkv.bias"].reshape(3, HEADS, -1)
        found = {
            part: {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias)}
            for part, kernel, bias in zip(("query", "key", "value"), kernels, biases, strict=True)
        }
        out = dense(f"{name}.proj")
        return {**found, "out": {**out, "kernel": out["kernel"].reshape(HEADS, -1, WIDTH)}}

    params = {
        "embedding": {
            "kernel": jnp.asarray(w["patch_embed.proj.weight"].transpose(2, 3, 1, 0)),
            "bias": jnp.asarray(w["patch_embed.proj.bias"]),
        },
        "cls": jnp.asarray(w["cls_token"]),
        "posembed": jnp.asarray(w["pos_embed"]),
        "encoder_norm": norm("norm"),
        "head": dense("head"),
    }
    for i in range(DEPTH):
        params[f"encoderblock_{i}"] = {
            "LayerNorm_0": norm(f"blocks.{i}.norm1"),
            "MultiHeadDotProductAttention_0": attention(f"blocks.{i}.attn"),
            "LayerNorm_1": norm(f"blocks.{i}.norm2"),
            "MlpBlock_0": {
                "Dense_0": dense(f"blocks.{i}.mlp.fc1"),
                "Dense_1": dense(f"blocks.{i}.mlp.fc2"),
            },
        }
    return {"params": params}


def port(w: Any, **changes: Any) -> Any:
    return ViT(**changes), convert(w)


def case(name: str, *faults: Fault, **changes: Any) -> Case:
    return Case(name, "linen", torch_model, partial(port, **changes), inputs, faults)


CASES = [
    case("channels last"),
    case(
        "flax's default gelu",
        Fault("blocks.*.mlp.act", ("gelu",), ("blocks.*.mlp",)),
        approximate=True,
    ),
    case("class token last", Fault("", ("token-order",)), class_last=True),
    case("mean of all tokens", Fault("", ("pooling",)), mean=True),
    case("patches by columns", Fault("patch_embed", ("flatten-order",)), columns=True),
]
