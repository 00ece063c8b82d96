"""A DenseNet; a port in Linen, channels last, with its running statistics."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
import torch
from flax import linen
from torch import nn

from benchmarks.porting.case import Case, Fault, draw

GROWTH, FIRST, CLASSES = 6, 10, 5


class DenseLayer(nn.Module):
    def __init__(self, features):
        super().__init__()
        self.norm1, self.relu1 = nn.BatchNorm2d(features), nn.ReLU()
        self.conv1 = nn.Conv2d(features, 4 * GROWTH, 1, bias=False)
        self.norm2, self.relu2 = nn.BatchNorm2d(4 * GROWTH), nn.ReLU()
        self.conv2 = nn.Conv2d(4 * GROWTH, GROWTH, 3, padding=1, bias=False)

    def forward(self, x):
        y = self.conv1(self.relu1(self.norm1(x)))
        return torch.cat([x, self.conv2(self.relu2(self.norm2(y)))], 1)


class Transition(nn.Sequential):
    def __init__(self, features):
        super().__init__()
        self.norm, self.relu = nn.BatchNorm2d(features), nn.ReLU()
        self.conv = nn.Conv2d(features, features // 2, 1, bias=False)
        self.pool = nn.AvgPool2d(2, 2)


class DenseNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, FIRST, 3, 2, 1, bias=False),
            nn.BatchNorm2d(FIRST),
            nn.ReLU(),
            nn.MaxPool2d(3, 2, 1),
        )
        self.block1 = nn.Sequential(*(DenseLayer(FIRST + i * GROWTH) for i in range(3)))
        self.transition = Transition(FIRST + 3 * GROWTH)
        half = (FIRST + 3 * GROWTH) // 2
        self.block2 = nn.Sequential(*(DenseLayer(half + i * GROWTH) for i in range(2)))
        self.norm = nn.BatchNorm2d(half + 2 * GROWTH)
        self.classifier = nn.Linear(half + 2 * GROWTH, CLASSES)

    def forward(self, x):
        x = self.block2(self.transition(self.block1(self.stem(x))))
        return self.classifier(torch.relu(self.norm(x)).mean((2, 3)))


def torch_model() -> nn.Module:
    return draw(DenseNet())


def inputs() -> Any:
    x = np.random.default_rng(0).standard_normal((3, 3, 28, 36)).astype(np.float32)
    return {"torch": (x,), "jax": (x.transpose(0, 2, 3, 1),)}


class Dense(linen.Module):
    norm: Callable
    last: bool

    @linen.compact
    def __call__(self, x):
        y = linen.relu(self.norm(name="bn_a")(x))
        y = linen.Conv(4 * GROWTH, (1, 1), use_bias=False, name="squeeze")(y)
        y = linen.relu(self.norm(name="bn_b")(y))
        y = linen.Conv(GROWTH, (3, 3), use_bias=False, name="grow")(y)
        return jnp.concatenate([x, y] if self.last else [y, x], axis=-1)


class Net(linen.Module):
    pool: Callable = linen.avg_pool
    padding: Any = ((1, 1), (1, 1))
    norm: Callable = partial(linen.BatchNorm, use_running_average=True)
    last: bool = True
    max_padding: Any = ((1, 1), (1, 1))

    @linen.compact
    def __call__(self, x):
        x = linen.Conv(FIRST, (3, 3), 2, padding=self.padding, use_bias=False, name="stem")(x)
        x = linen.relu(self.norm(name="stem_bn")(x))
        x = linen.max_pool(x, (3, 3), (2, 2), padding=self.max_padding)
        for i in range(3):
            x = Dense(self.norm, self.last, name=f"a{i}")(x)
        x = linen.relu(self.norm(name="mid_bn")(x))
        x = linen.Conv(x.shape[-1] // 2, (1, 1), use_bias=False, name="mid")(x)
        x = self.pool(x, (2, 2), (2, 2))
        for i in range(2):
            x = Dense(self.norm, self.last, name=f"b{i}")(x)
        x = linen.relu(self.norm(name="top_bn")(x))
        return linen.Dense(CLASSES, name="fc")(x.mean(axis=(1, 2)))


def convert(w: Any, shuffled: bool = False) -> Any:
    params: dict[str, Any] = {}
    stats: dict[str, Any] = {}

    def conv(name: str) -> Any:
        return {"kernel": jnp.asarray(w[f"{name}.weight"].transpose(2, 3, 1, 0))}

    def norm(name: str) -> tuple[Any, Any]:
        get = {part: jnp.asarray(w[f"{name}.{part}"]) for part in ("weight", "bias")}
        mean, var = (jnp.asarray(w[f"{name}.running_{part}"]) for part in ("mean", "var"))
        return {"scale": get["weight"], "bias": get["bias"]}, {"mean": mean, "var": var}

    for mine, theirs in (("stem", "stem.0"), ("mid", "transition.conv")):
        params[mine] = conv(theirs)
    for mine, theirs in (
        ("stem_bn", "stem.1"),
        ("mid_bn", "transition.norm"),
        ("top_bn", "norm"),
    ):
        params[mine], stats[mine] = norm(theirs)
    for mine, theirs, count in (("a", "block1", 3), ("b", "block2", 2)):
        for i in range(count):
            name = f"{theirs}.{i}"
            a, mean_a = norm(f"{name}.norm1")
            b, mean_b = norm(f"{name}.norm2")
            convs = {"squeeze": conv(f"{name}.conv1"), "grow": conv(f"{name}.conv2")}
            params[f"{mine}{i}"] = {"bn_a": a, "bn_b": b, **convs}
            stats[f"{mine}{i}"] = {"bn_a": mean_a, "bn_b": mean_b}
    params["fc"] = {
        "kernel": jnp.asarray(w["classifier.weight"].T),
        "bias": jnp.asarray(w["classifier.bias"]),
    }
    return {"params": params, "batch_stats": stats}


def port(w: Any, **how: Any) -> Any:
    return Net(**how), convert(w)


def case(name: str, *faults: Fault, **how: Any) -> Case:
    return Case(name, "linen", torch_model, partial(port, **how), inputs, faults)


NORMS = ("block?.?.norm?", ("epsilon",), ("stem.1", "transition.norm", "norm"))
CASES = [
    case("channels last", norm=partial(linen.BatchNorm, use_running_average=True, epsilon=1e-5)),
    case(
        "epsilon of another library",
        Fault(*NORMS),
        norm=partial(linen.BatchNorm, use_running_average=True, epsilon=1e-3),
    ),
    case(
        "maximum between the blocks",
        Fault("transition.pool", ("pooling",), ("transition",)),
        pool=linen.max_pool,
    ),
    case(
        "new features first",
        Fault("block?.?", ("split-order", "wrong-source", "token-order")),
        last=False,
    ),
    case(
        "SAME in stem and pooling",
        Fault("stem.0", ("conv-padding",)),
        Fault("stem.3", ("pooling", "conv-padding", "padding")),
        padding="SAME",
        max_padding="SAME",
    ),
]
