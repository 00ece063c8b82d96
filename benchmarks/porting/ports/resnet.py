"""A residual network with BatchNorm; a port in NNX, channels last."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from torch import nn

from benchmarks.porting.case import Case, Fault, draw

CLASSES = 5


class BasicBlock(nn.Module):
    def __init__(self, inner, outer, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(inner, outer, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outer)
        self.conv2 = nn.Conv2d(outer, outer, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outer)
        self.relu = nn.ReLU()
        self.downsample = None
        if stride != 1:
            self.downsample = nn.Sequential(
                nn.Conv2d(inner, outer, 1, stride, bias=False), nn.BatchNorm2d(outer)
            )

    def forward(self, x):
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return self.relu(out + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.relu = nn.ReLU()
        self.layer1 = nn.Sequential(BasicBlock(8, 8), BasicBlock(8, 8))
        self.layer2 = nn.Sequential(BasicBlock(8, 12, 2), BasicBlock(12, 12))
        self.pool = nn.AvgPool2d(3)
        self.fc = nn.Linear(12 * 2 * 3, CLASSES)

    def forward(self, x):
        x = self.relu(self.bn1(self.conv1(x)))
        return self.fc(self.pool(self.layer2(self.layer1(x))).flatten(1))


def torch_model() -> nn.Module:
    return draw(ResNet())


def inputs() -> Any:
    x = np.random.default_rng(0).standard_normal((4, 3, 12, 18)).astype(np.float32)
    return {"torch": (x,), "jax": (x.transpose(0, 2, 3, 1),)}


def relu_after_sum(y: jax.Array, x: jax.Array) -> jax.Array:
    return nnx.relu(y + x)


def relu_before_sum(y: jax.Array, x: jax.Array) -> jax.Array:
    return nnx.relu(y) + x


class ResidualUnit(nnx.Module):
    def __init__(self, features_in, features_out, stride, padding, join, rngs):
        conv = partial(nnx.Conv, use_bias=False, rngs=rngs)
        self.first = conv(features_in, features_out, (3, 3), stride, padding=padding)
        self.norm_a = nnx.BatchNorm(features_out, rngs=rngs)
        self.second = conv(features_out, features_out, (3, 3), padding=1)
        self.norm_b = nnx.BatchNorm(features_out, rngs=rngs)
        self.join = join
        strided = stride > 1
        self.shortcut = conv(features_in, features_out, (1, 1), stride) if strided else None
        self.norm_s = nnx.BatchNorm(features_out, rngs=rngs) if strided else None

    def __call__(self, x):
        y = nnx.relu(self.norm_a(self.first(x)))
        y = self.norm_b(self.second(y))
        if self.shortcut is not None:
            x = self.norm_s(self.shortcut(x))
        return self.join(y, x)


class Net(nnx.Module):
    def __init__(self, rngs, padding=1, join=relu_after_sum):
        self.stem = nnx.Conv(3, 8, (3, 3), use_bias=False, rngs=rngs)
        self.stem_norm = nnx.BatchNorm(8, rngs=rngs)
        self.units = nnx.List(
            ResidualUnit(a, b, stride, padding, join, rngs)
            for a, b, stride in ((8, 8, 1), (8, 8, 1), (8, 12, 2), (12, 12, 1))
        )
        self.classifier = nnx.Linear(72, CLASSES, rngs=rngs)

    def __call__(self, images):
        x = nnx.relu(self.stem_norm(self.stem(images)))
        for unit in self.units:
            x = unit(x)
        x = nnx.avg_pool(x, (3, 3), strides=(3, 3))
        return self.classifier(x.reshape(len(x), -1))


def hwio(kernel: Any) -> jax.Array:
    return jnp.asarray(kernel.transpose(2, 3, 1, 0))


def load(model: Net, w: Any, kernel: Any = hwio, rows: Any = None) -> Net:
    def norm(layer: nnx.BatchNorm, name: str) -> None:
        layer.scale = nnx.Param(jnp.asarray(w[f"{name}.weight"]))
        layer.bias = nnx.Param(jnp.asarray(w[f"{name}.bias"]))
        layer.mean = nnx.BatchStat(jnp.asarray(w[f"{name}.running_mean"]))
        layer.var = nnx.BatchStat(jnp.asarray(w[f"{name}.running_var"]))

    def conv(layer: nnx.Conv, name: str) -> None:
        layer.kernel = nnx.Param(kernel(w[f"{name}.weight"]))

    conv(model.stem, "conv1")
    norm(model.stem_norm, "bn1")
    for i, unit in enumerate(model.units):
        name = f"layer{i // 2 + 1}.{i % 2}"
        conv(unit.first, f"{name}.conv1")
        norm(unit.norm_a, f"{name}.bn1")
        conv(unit.second, f"{name}.conv2")
        norm(unit.norm_b, f"{name}.bn2")
        if unit.shortcut is not None:
            conv(unit.shortcut, f"{name}.downsample.0")
            norm(unit.norm_s, f"{name}.downsample.1")
    weight = w["fc.weight"]
    weight = rows(weight) if rows else weight
    model.classifier.kernel = nnx.Param(jnp.asarray(weight.T))
    model.classifier.bias = nnx.Param(jnp.asarray(w["fc.bias"]))
    return model


def channels_last(weight: Any) -> Any:
    """Rows of the classifier in the order of the NHWC feature map."""
    return weight.reshape(CLASSES, 12, 2, 3).transpose(0, 2, 3, 1).reshape(CLASSES, -1)


def port(w: Any, train: bool = False, kernel: Any = hwio, rows: Any = channels_last, **how: Any):
    model = load(Net(nnx.Rngs(0), **how), w, kernel, rows)
    if not train:
        model.eval()
    return model


def case(name: str, *faults: Fault, **changes: Any) -> Case:
    return Case(name, "nnx", torch_model, partial(port, **changes), inputs, faults)


CASES = [
    case("channels last"),
    case(
        "SAME for a stride of two",
        Fault("layer2.0.conv1", ("conv-padding",)),
        padding="SAME",
    ),
    case(
        "left in train mode",
        Fault("layer?.?.bn?", ("batch-statistics",), ("bn1", "layer?.?.downsample.1")),
        train=True,
    ),
    case(
        "feature map flattened channels last",
        Fault("fc", ("flatten-order", "kernel-layout"), ("",), in_weights=True),
        rows=None,
    ),
    case(
        "kernels of width and height swapped",
        Fault(
            "layer?.?.conv?", ("kernel-layout", "transposed-kernel"), ("conv1",), in_weights=True
        ),
        kernel=lambda kernel: jnp.asarray(kernel.transpose(3, 2, 1, 0)),
    ),
    case(
        "relu before the sum", Fault("layer?.?", ("residual", "activation")), join=relu_before_sum
    ),
]
