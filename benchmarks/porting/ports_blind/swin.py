"""A small SwinV2: shifted windows, cosine attention, norms after the layers; a port in NNX."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from torch import nn
from torch.nn import functional as F

from benchmarks.porting.case import Case, Fault, draw

WIDTH, HEADS, CLASSES = 12, 3, 7


class WindowAttention(nn.Module):
    def __init__(self, width, window):
        super().__init__()
        self.window = window
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.logit_scale = nn.Parameter(torch.zeros(HEADS, 1, 1))
        self.bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, HEADS))
        grid = torch.stack(
            torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
        )
        flat = grid.flatten(1)
        apart = (flat[:, :, None] - flat[:, None, :]).permute(1, 2, 0) + window - 1
        self.register_buffer("index", apart[..., 0] * (2 * window - 1) + apart[..., 1])

    def forward(self, x, mask=None):
        B, N, C = x.shape
        q, k, v = self.qkv(x).reshape(B, N, 3, HEADS, C // HEADS).permute(2, 0, 3, 1, 4)
        scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
        scores = scores * self.logit_scale.clamp(max=math.log(100)).exp()
        bias = self.bias_table[self.index.flatten()].view(N, N, HEADS).permute(2, 0, 1)
        scores = scores + bias
        if mask is not None:
            windows = len(mask)
            scores = scores.view(B // windows, windows, HEADS, N, N) + mask[None, :, None]
            scores = scores.view(B, HEADS, N, N)
        x = (scores.softmax(dim=-1) @ v).transpose(1, 2).reshape(B, N, C)
        return self.proj(x)


def partition(x, w):
    B, H, W, C = x.shape
    x = x.view(B, H // w, w, W // w, w, C).permute(0, 1, 3, 2, 4, 5)
    return x.reshape(-1, w * w, C)


def join(x, w, H, W):
    B, C = len(x) * w * w // (H * W), x.shape[-1]
    x = x.view(B, H // w, W // w, w, w, C).permute(0, 1, 3, 2, 4, 5)
    return x.reshape(B, H, W, C)


class SwinBlock(nn.Module):
    def __init__(self, width, window, shift):
        super().__init__()
        self.window, self.shift = window, shift
        self.attn = WindowAttention(width, window)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 29), nn.GELU(), nn.Linear(29, width))

    def mask(self, H, W):
        s, w = self.shift, self.window
        regions = torch.zeros(1, H, W, 1)
        count = 0
        for rows in (slice(0, -w), slice(-w, -s), slice(-s, None)):
            for columns in (slice(0, -w), slice(-w, -s), slice(-s, None)):
                regions[:, rows, columns] = count
                count += 1
        flat = partition(regions, w).squeeze(-1)
        return (flat[:, None] != flat[:, :, None]) * -100.0

    def forward(self, x):
        _, H, W, _ = x.shape
        y = torch.roll(x, (-self.shift, -self.shift), (1, 2)) if self.shift else x
        y = self.attn(partition(y, self.window), self.mask(H, W) if self.shift else None)
        y = join(y, self.window, H, W)
        y = torch.roll(y, (self.shift, self.shift), (1, 2)) if self.shift else y
        x = x + self.norm1(y)
        return x + self.norm2(self.mlp(x))


class PatchMerging(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)
        self.norm = nn.LayerNorm(2 * width)

    def forward(self, x):
        corners = x[:, ::2, ::2], x[:, 1::2, ::2], x[:, ::2, 1::2], x[:, 1::2, 1::2]
        return self.norm(self.reduction(torch.cat(corners, -1)))


class Swin(nn.Module):
    def __init__(self):
        super().__init__()
        self.patch_embed, self.patch_norm = nn.Conv2d(3, WIDTH, 2, 2), nn.LayerNorm(WIDTH)
        self.stage1 = nn.Sequential(SwinBlock(WIDTH, 4, 0), SwinBlock(WIDTH, 4, 2))
        self.merge = PatchMerging(WIDTH)
        self.stage2 = nn.Sequential(SwinBlock(2 * WIDTH, 2, 0), SwinBlock(2 * WIDTH, 2, 1))
        self.norm, self.head = nn.LayerNorm(2 * WIDTH), nn.Linear(2 * WIDTH, CLASSES)

    def forward(self, x):
        x = self.patch_norm(self.patch_embed(x).permute(0, 2, 3, 1))
        x = self.stage2(self.merge(self.stage1(x)))
        return self.head(self.norm(x).mean((1, 2)))


def torch_model() -> nn.Module:
    return draw(Swin())


def inputs() -> Any:
    x = np.random.default_rng(0).standard_normal((2, 3, 16, 24)).astype(np.float32)
    return {"torch": (x,), "jax": (x.transpose(0, 2, 3, 1),)}


def offsets(w: int) -> np.ndarray:
    """Rows of the table of biases, (w², w²)."""
    y, x = np.divmod(np.arange(w * w), w)
    return (y[:, None] - y + w - 1) * (2 * w - 1) + x[:, None] - x + w - 1


def split_windows(x: jax.Array, w: int) -> jax.Array:
    n, h, ww, c = x.shape
    x = x.reshape(n, h // w, w, ww // w, w, c).swapaxes(2, 3)
    return x.reshape(n, -1, w * w, c)


def merge_windows(x: jax.Array, w: int, h: int, ww: int) -> jax.Array:
    n, c = x.shape[0], x.shape[-1]
    return x.reshape(n, h // w, ww // w, w, w, c).swapaxes(2, 3).reshape(n, h, ww, c)


def same_region(h: int, ww: int, w: int, s: int) -> np.ndarray:
    """Whether two places of a shifted window were neighbours, (windows, w², w²)."""

    def band(n: int) -> np.ndarray:
        return np.digitize(np.arange(n), [n - w, n - s])

    ids = 3 * band(h)[:, None] + band(ww)
    ids = ids.reshape(h // w, w, ww // w, w).swapaxes(1, 2).reshape(-1, w * w)
    return ids[:, :, None] == ids[:, None, :]


def unit(x: jax.Array) -> jax.Array:
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


class CosineAttention(nnx.Module):
    def __init__(self, dim, window, rngs, flip=False):
        self.q, self.k, self.v, self.out = (nnx.Linear(dim, dim, rngs=rngs) for _ in range(4))
        self.log_tau = nnx.Param(jnp.zeros((HEADS,)))
        self.table = nnx.Param(jnp.zeros((HEADS, (2 * window - 1) ** 2)))
        self.window, self.flip = window, flip

    def __call__(self, x, allowed=None):
        q, k, v = (
            f(x).reshape(*x.shape[:-1], HEADS, -1).swapaxes(-2, -3)
            for f in (self.q, self.k, self.v)
        )
        tau = jnp.exp(jnp.minimum(self.log_tau[...], math.log(100)))
        rows = offsets(self.window)
        bias = self.table[...][:, rows.T if self.flip else rows]
        scores = jnp.einsum("nwhqd,nwhkd->nwhqk", unit(q), unit(k)) * tau[:, None, None] + bias
        if allowed is not None:
            scores += jnp.where(allowed, 0, -100.0)[:, None]
        y = jnp.einsum("nwhqk,nwhkd->nwqhd", nnx.softmax(scores), v)
        return self.out(y.reshape(x.shape))


class Layer(nnx.Module):
    def __init__(self, dim, window, shift, rngs, masked=True, pre=False, flip=False):
        self.attention = CosineAttention(dim, window, rngs, flip)
        self.ln_a = nnx.LayerNorm(dim, epsilon=1e-5, rngs=rngs)
        self.ln_b = nnx.LayerNorm(dim, epsilon=1e-5, rngs=rngs)
        self.up, self.down = nnx.Linear(dim, 29, rngs=rngs), nnx.Linear(29, dim, rngs=rngs)
        self.window, self.shift, self.masked, self.pre = window, shift, masked, pre

    def attend(self, x):
        h, w = x.shape[1:3]
        x = jnp.roll(x, (-self.shift, -self.shift), axis=(1, 2))
        allowed = same_region(h, w, self.window, self.shift) if self.shift and self.masked else None
        y = self.attention(split_windows(x, self.window), allowed)
        y = merge_windows(y, self.window, h, w)
        return jnp.roll(y, (self.shift, self.shift), axis=(1, 2))

    def feed(self, x):
        return self.down(nnx.gelu(self.up(x), approximate=False))

    def __call__(self, x):
        if self.pre:
            x = x + self.attend(self.ln_a(x))
            return x + self.feed(self.ln_b(x))
        x = x + self.ln_a(self.attend(x))
        return x + self.ln_b(self.feed(x))


class SwinTransformer(nnx.Module):
    def __init__(self, rngs, by_rows=False, **how):
        self.embed = nnx.Conv(3, WIDTH, (2, 2), 2, padding="VALID", rngs=rngs)
        self.embed_norm = nnx.LayerNorm(WIDTH, epsilon=1e-5, rngs=rngs)
        self.layers = nnx.List(
            Layer(dim, window, shift, rngs, **how)
            for dim, window, shift in ((12, 4, 0), (12, 4, 2), (24, 2, 0), (24, 2, 1))
        )
        self.reduce = nnx.Linear(4 * WIDTH, 2 * WIDTH, use_bias=False, rngs=rngs)
        self.reduce_norm = nnx.LayerNorm(2 * WIDTH, epsilon=1e-5, rngs=rngs)
        self.norm = nnx.LayerNorm(2 * WIDTH, epsilon=1e-5, rngs=rngs)
        self.classify = nnx.Linear(2 * WIDTH, CLASSES, rngs=rngs)
        self.by_rows = by_rows

    def downsample(self, x):
        n, h, w, c = x.shape
        order = (0, 1, 3, 2, 4, 5) if self.by_rows else (0, 1, 3, 4, 2, 5)
        x = x.reshape(n, h // 2, 2, w // 2, 2, c).transpose(order)
        return self.reduce_norm(self.reduce(x.reshape(n, h // 2, w // 2, 4 * c)))

    def __call__(self, image):
        x = self.embed_norm(self.embed(image))
        for i, layer in enumerate(self.layers):
            x = layer(self.downsample(x) if i == 2 else x)
        return self.classify(self.norm(x).mean((1, 2)))


def port(w: Any, **how: Any) -> Any:
    model = SwinTransformer(nnx.Rngs(0), **how)

    def dense(layer: Any, kernel: Any, bias: Any = None) -> None:
        layer.kernel = nnx.Param(jnp.asarray(kernel.T))
        if bias is not None:
            layer.bias = nnx.Param(jnp.asarray(bias))

    def named(layer: Any, name: str) -> None:
        dense(layer, w[f"{name}.weight"], w.get(f"{name}.bias"))

    def norm(layer: Any, name: str) -> None:
        layer.scale = nnx.Param(jnp.asarray(w[f"{name}.weight"]))
        layer.bias = nnx.Param(jnp.asarray(w[f"{name}.bias"]))

    model.embed.kernel = nnx.Param(jnp.asarray(w["patch_embed.weight"].transpose(2, 3, 1, 0)))
    model.embed.bias = nnx.Param(jnp.asarray(w["patch_embed.bias"]))
    norm(model.embed_norm, "patch_norm")
    for i, layer in enumerate(model.layers):
        name = f"stage{i // 2 + 1}.{i % 2}"
        kernels = np.split(w[f"{name}.attn.qkv.weight"], 3)
        biases = np.split(w[f"{name}.attn.qkv.bias"], 3)
        attention = layer.attention
        for part, kernel, bias in zip("qkv", kernels, biases, strict=True):
            dense(getattr(attention, part), kernel, bias)
        named(attention.out, f"{name}.attn.proj")
        attention.log_tau = nnx.Param(jnp.asarray(w[f"{name}.attn.logit_scale"][:, 0, 0]))
        attention.table = nnx.Param(jnp.asarray(w[f"{name}.attn.bias_table"].T))
        norm(layer.ln_a, f"{name}.norm1")
        norm(layer.ln_b, f"{name}.norm2")
        named(layer.up, f"{name}.mlp.0")
        named(layer.down, f"{name}.mlp.2")
    named(model.reduce, "merge.reduction")
    norm(model.reduce_norm, "merge.norm")
    norm(model.norm, "norm")
    named(model.classify, "head")
    return model


def case(name: str, *faults: Fault, **how: Any) -> Case:
    return Case(name, "nnx", torch_model, partial(port, **how), inputs, faults)


CASES = [
    case("split projections"),
    case("distances negated", Fault("stage?.?.attn", ("position-bias",)), flip=True),
    case(
        "shifted windows not masked",
        Fault("stage?.1.attn", ("mask-missing",), ("stage?.1",)),
        masked=False,
    ),
    case(
        "corners of a patch by rows",
        Fault("merge", ("token-order", "split-order", "flatten-order", "wrong-source")),
        by_rows=True,
    ),
]
