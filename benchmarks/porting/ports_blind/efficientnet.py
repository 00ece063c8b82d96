"""An EfficientNet of inverted bottlenecks with squeeze and excitation; a port in NNX."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from torch import nn

from benchmarks.porting.case import Case, Fault, draw

SIZES = ((8, 12, 3, 2), (12, 12, 5, 1), (12, 16, 3, 2), (16, 16, 5, 1))
EPSILON = 1e-3


class SqueezeExcitation(nn.Module):
    def __init__(self, width, squeezed):
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1, self.fc2 = nn.Conv2d(width, squeezed, 1), nn.Conv2d(squeezed, width, 1)
        self.activation, self.scale_activation = nn.SiLU(), nn.Sigmoid()

    def forward(self, x):
        y = self.activation(self.fc1(self.avgpool(x)))
        return x * self.scale_activation(self.fc2(y))


class ConvNormAct(nn.Sequential):
    def __init__(self, a, b, kernel, stride=1, groups=1, act=True):
        parts = [
            nn.Conv2d(a, b, kernel, stride, kernel // 2, groups=groups, bias=False),
            nn.BatchNorm2d(b, eps=EPSILON),
        ]
        super().__init__(*parts, *([nn.SiLU()] if act else []))


class MBConv(nn.Module):
    def __init__(self, a, b, kernel, stride):
        super().__init__()
        self.residual = stride == 1 and a == b
        self.expand = ConvNormAct(a, 3 * a, 1)
        self.depthwise = ConvNormAct(3 * a, 3 * a, kernel, stride, groups=3 * a)
        self.se = SqueezeExcitation(3 * a, a // 2)
        self.project = ConvNormAct(3 * a, b, 1, act=False)

    def forward(self, x):
        y = self.project(self.se(self.depthwise(self.expand(x))))
        return x + y if self.residual else y


class EfficientNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = ConvNormAct(3, 8, 3, 2)
        self.blocks = nn.Sequential(*(MBConv(*size) for size in SIZES))
        self.top = ConvNormAct(16, 22, 1)
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(22, 6)

    def forward(self, x):
        return self.fc(self.pool(self.top(self.blocks(self.stem(x)))).flatten(1))


def torch_model() -> nn.Module:
    return draw(EfficientNet())


def inputs() -> Any:
    x = np.random.default_rng(0).standard_normal((2, 3, 28, 20)).astype(np.float32)
    return {"torch": (x,), "jax": (x.transpose(0, 2, 3, 1),)}


def sigmoid_gate(x):
    return nnx.sigmoid(x)


class Unit(nnx.Module):
    def __init__(self, a, b, kernel, stride=1, groups=1, rngs=None, padding=None):
        self.conv = nnx.Conv(
            a,
            b,
            (kernel, kernel),
            stride,
            padding=kernel // 2 if padding is None else padding,
            feature_group_count=groups,
            use_bias=False,
            rngs=rngs,
        )
        self.bn = nnx.BatchNorm(b, epsilon=EPSILON, use_running_average=True, rngs=rngs)

    def __call__(self, x):
        return self.bn(self.conv(x))


class Bottleneck(nnx.Module):
    def __init__(self, a, b, kernel, stride, rngs, gate, inner, skip, padding, early):
        self.wide = Unit(a, 3 * a, 1, rngs=rngs)
        self.deep = Unit(3 * a, 3 * a, kernel, stride, 3 * a, rngs=rngs, padding=padding)
        self.down, self.up = (
            nnx.Linear(3 * a, a // 2, rngs=rngs),
            nnx.Linear(a // 2, 3 * a, rngs=rngs),
        )
        self.thin = Unit(3 * a, b, 1, rngs=rngs)
        self.add = skip and stride == 1 and a == b
        self.gate, self.inner, self.early = gate, inner, early

    def __call__(self, x):
        y = nnx.silu(self.wide(x))
        z = self.deep(y)
        y = nnx.silu(z)
        pooled = jnp.einsum("nhwc->nc", z if self.early else y) / (y.shape[1] * y.shape[2])
        weights = self.gate(self.up(self.inner(self.down(pooled))))
        y = self.thin(y * weights[:, None, None])
        return x + y if self.add else y


class Net(nnx.Module):
    def __init__(
        self,
        rngs,
        gate=sigmoid_gate,
        inner=nnx.silu,
        skip=True,
        padding=None,
        early=False,
        top=nnx.silu,
    ):
        self.stem = Unit(3, 8, 3, 2, rngs=rngs)
        self.body = nnx.List(
            Bottleneck(*size, rngs, gate, inner, skip, padding, early) for size in SIZES
        )
        self.last = Unit(16, 22, 1, rngs=rngs)
        self.head = nnx.Linear(22, 6, rngs=rngs)
        self.top = top

    def __call__(self, x):
        x = nnx.silu(self.stem(x))
        for block in self.body:
            x = block(x)
        return self.head(self.top(self.last(x)).mean((1, 2)))


def port(w: Any, flipped: bool = False, **how: Any) -> Any:
    model = Net(nnx.Rngs(0), **how)

    def put(layer: Any, **values: Any) -> None:
        for name, x in values.items():
            getattr(layer, name).set_value(jnp.asarray(x))

    def unit(layer: Unit, name: str, order: Any = (2, 3, 1, 0)) -> None:
        put(layer.conv, kernel=w[f"{name}.0.weight"].transpose(order))
        put(layer.bn, scale=w[f"{name}.1.weight"], bias=w[f"{name}.1.bias"])
        put(layer.bn, mean=w[f"{name}.1.running_mean"], var=w[f"{name}.1.running_var"])

    unit(model.stem, "stem")
    unit(model.last, "top")
    for i, block in enumerate(model.body):
        unit(block.wide, f"blocks.{i}.expand")
        unit(block.deep, f"blocks.{i}.depthwise", (3, 2, 1, 0) if flipped else (2, 3, 1, 0))
        unit(block.thin, f"blocks.{i}.project")
        for mine, theirs in ((block.down, "fc1"), (block.up, "fc2")):
            name = f"blocks.{i}.se.{theirs}"
            put(mine, kernel=w[f"{name}.weight"][:, :, 0, 0].T, bias=w[f"{name}.bias"])
    put(model.head, kernel=w["fc.weight"].T, bias=w["fc.bias"])
    return model


def identity(x: jax.Array) -> jax.Array:
    return x


def case(name: str, *faults: Fault, **how: Any) -> Case:
    return Case(name, "nnx", torch_model, partial(port, **how), inputs, faults)


CASES = [
    case("gates of linear layers"),
    case(
        "hard sigmoid of the gates",
        Fault("blocks.*.se.scale_activation", ("activation",), ("blocks.*.se",)),
        gate=nnx.hard_sigmoid,
    ),
]
