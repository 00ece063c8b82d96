"""A ConvNeXt; a port as a callable pytree, channels last."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax import lax
from torch import nn
from torch.nn import functional as F

from benchmarks.porting.case import Case, Fault, draw

WIDTHS = (10, 14)


class LayerNorm2d(nn.LayerNorm):
    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Block(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, 5, padding=2, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.pwconv1 = nn.Linear(dim, 3 * dim)
        self.act = nn.GELU()
        self.pwconv2 = nn.Linear(3 * dim, dim)
        self.gamma = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        y = self.dwconv(x).permute(0, 2, 3, 1)
        y = self.gamma * self.pwconv2(self.act(self.pwconv1(self.norm(y))))
        return x + y.permute(0, 3, 1, 2)


class ConvNeXt(nn.Module):
    def __init__(self):
        super().__init__()
        a, b = WIDTHS
        self.stem = nn.Sequential(nn.Conv2d(3, a, 2, 2), LayerNorm2d(a, eps=1e-6))
        self.stage1 = nn.Sequential(Block(a), Block(a))
        self.down = nn.Sequential(LayerNorm2d(a, eps=1e-6), nn.Conv2d(a, b, 2, 2))
        self.stage2 = nn.Sequential(Block(b), Block(b))
        self.norm, self.head = nn.LayerNorm(b, eps=1e-6), nn.Linear(b, 6)

    def forward(self, x):
        x = self.stage2(self.down(self.stage1(self.stem(x))))
        return F.log_softmax(self.head(self.norm(x.mean((-2, -1)))), dim=-1)


def torch_model() -> nn.Module:
    return draw(ConvNeXt())


def inputs() -> Any:
    x = np.random.default_rng(0).standard_normal((2, 3, 12, 20)).astype(np.float32)
    return {"torch": (x,), "jax": (x.transpose(0, 2, 3, 1),)}


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Norm:
    scale: jax.Array
    shift: jax.Array
    axes: tuple[int, ...] = dataclasses.field(default=(-1,), metadata={"static": True})

    def __call__(self, x):
        mean = jnp.mean(x, self.axes, keepdims=True)
        mean2 = jnp.mean(x * x, self.axes, keepdims=True)
        return (x - mean) * lax.rsqrt(mean2 - mean**2 + 1e-6) * self.scale + self.shift


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Conv:
    kernel: jax.Array
    bias: jax.Array
    stride: int = dataclasses.field(default=1, metadata={"static": True})

    def __call__(self, x):
        groups = x.shape[-1] // self.kernel.shape[2]
        y = lax.conv_general_dilated(
            x,
            self.kernel,
            (self.stride, self.stride),
            "SAME" if self.stride == 1 else "VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )
        return y + self.bias


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Layer:
    depthwise: Conv
    norm: Norm
    up: jax.Array
    up_bias: jax.Array
    down: jax.Array
    down_bias: jax.Array
    layer_scale: jax.Array | None

    def __call__(self, x):
        y = self.norm(self.depthwise(x))
        y = jax.nn.gelu(y @ self.up + self.up_bias, approximate=False)
        y = y @ self.down + self.down_bias
        return x + (y if self.layer_scale is None else y * self.layer_scale)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Network:
    patch: Conv
    patch_norm: Norm
    early: tuple[Layer, ...]
    down_norm: Norm
    down: Conv
    late: tuple[Layer, ...]
    norm: Norm
    head: jax.Array
    head_bias: jax.Array

    def __call__(self, x):
        x = self.patch_norm(self.patch(x))
        for layer in self.early:
            x = layer(x)
        x = self.down(self.down_norm(x))
        for layer in self.late:
            x = layer(x)
        logits = self.norm(x.mean((1, 2))) @ self.head + self.head_bias
        return jax.nn.log_softmax(logits)


def port(w: Any, axes: tuple[int, ...] = (-1,), scaled: bool = True) -> Any:
    def conv(name: str, stride: int = 1) -> Conv:
        kernel = w[f"{name}.weight"].transpose(2, 3, 1, 0)
        return Conv(jnp.asarray(kernel), jnp.asarray(w[f"{name}.bias"]), stride)

    def norm(name: str, axes: tuple[int, ...] = (-1,)) -> Norm:
        return Norm(jnp.asarray(w[f"{name}.weight"]), jnp.asarray(w[f"{name}.bias"]), axes)

    def layer(name: str) -> Layer:
        dense = [
            jnp.asarray(w[f"{name}.pwconv{i}.{part}"].T)
            for i in (1, 2)
            for part in ("weight", "bias")
        ]
        scale = jnp.asarray(w[f"{name}.gamma"]) if scaled else None
        return Layer(conv(f"{name}.dwconv"), norm(f"{name}.norm", axes), *dense, scale)

    return Network(
        conv("stem.0", 2),
        norm("stem.1"),
        (layer("stage1.0"), layer("stage1.1")),
        norm("down.0"),
        conv("down.1", 2),
        (layer("stage2.0"), layer("stage2.1")),
        norm("norm"),
        jnp.asarray(w["head.weight"].T),
        jnp.asarray(w["head.bias"]),
    )


def case(name: str, *faults: Fault, **changes: Any) -> Case:
    return Case(name, "pytree", torch_model, partial(port, **changes), inputs, faults)


CASES = [
    case("channels last"),
    case("no layer scale", Fault("stage?.?", ("scale-missing",)), scaled=False),
    case(
        "norm over the whole map",
        Fault("stage?.?.norm", ("norm-axis",)),
        axes=(1, 2, 3),
    ),
]
