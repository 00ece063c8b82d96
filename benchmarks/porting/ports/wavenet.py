"""A WaveNet of gated causal convolutions; a port in Linen with time before channels."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import linen as nn
from torch.nn import functional as F

from benchmarks.porting.case import Case, Fault, draw

CHANNELS, SKIP, CLASSES, DILATIONS = 10, 13, 11, (1, 2, 4)


class CausalConv(torch.nn.Conv1d):
    def forward(self, x):
        return super().forward(F.pad(x, (self.dilation[0] * (self.kernel_size[0] - 1), 0)))


class GatedBlock(torch.nn.Module):
    def __init__(self, dilation):
        super().__init__()
        self.conv = CausalConv(CHANNELS, 2 * CHANNELS, 3, dilation=dilation)
        self.res = torch.nn.Conv1d(CHANNELS, CHANNELS, 1)
        self.skip = torch.nn.Conv1d(CHANNELS, SKIP, 1)

    def forward(self, x):
        a, b = self.conv(x).chunk(2, dim=1)
        y = torch.tanh(a) * torch.sigmoid(b)
        return (x + self.res(y)) * math.sqrt(0.5), self.skip(y)


class WaveNet(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.front = CausalConv(1, CHANNELS, 2)
        self.blocks = torch.nn.ModuleList(GatedBlock(d) for d in DILATIONS)
        self.post = torch.nn.Sequential(
            torch.nn.LeakyReLU(0.2),
            torch.nn.Conv1d(SKIP, SKIP, 1),
            torch.nn.LeakyReLU(0.2),
            torch.nn.Conv1d(SKIP, CLASSES, 1),
        )

    def forward(self, wave):
        x, total = self.front(wave[:, None]), 0
        for block in self.blocks:
            x, skip = block(x)
            total = total + skip
        return self.post(total / math.sqrt(len(self.blocks)))


def torch_model() -> torch.nn.Module:
    return draw(WaveNet())


def inputs() -> Any:
    return (np.random.default_rng(0).standard_normal((2, 29)).astype(np.float32),)


class ResidualLayer(nn.Module):
    dilation: int
    padding: str
    swapped: bool
    scale: float

    @nn.compact
    def __call__(self, x):
        y = nn.Conv(2 * CHANNELS, 3, kernel_dilation=self.dilation, padding=self.padding)(x)
        filtered, gate = jnp.split(y, 2, axis=-1)
        if self.swapped:
            filtered, gate = gate, filtered
        y = jnp.tanh(filtered) * nn.sigmoid(gate)
        return (x + nn.Dense(CHANNELS, name="to_residual")(y)) * self.scale, nn.Dense(
            SKIP, name="to_skip"
        )(y)


class Vocoder(nn.Module):
    padding: str = "CAUSAL"
    swapped: bool = False
    scale: float = 0.5**0.5
    slope: float = 0.2

    @nn.compact
    def __call__(self, wave):
        x = nn.Conv(CHANNELS, 2, padding="CAUSAL", name="front")(wave[..., None])
        skips = []
        for i, dilation in enumerate(DILATIONS):
            layer = ResidualLayer(
                dilation, self.padding, self.swapped, self.scale, name=f"layer{i}"
            )
            x, skip = layer(x)
            skips.append(skip)
        x = jnp.stack(skips).sum(0) * len(DILATIONS) ** -0.5
        x = nn.Dense(SKIP, name="hidden")(jax.nn.leaky_relu(x, self.slope))
        return nn.Dense(CLASSES, name="logits")(jax.nn.leaky_relu(x, self.slope)).swapaxes(1, 2)


def convert(w: Any) -> Any:
    def conv(name: str) -> Any:
        kernel = jnp.asarray(w[f"{name}.weight"].transpose(2, 1, 0))
        return {"kernel": kernel, "bias": jnp.asarray(w[f"{name}.bias"])}

    def dense(name: str) -> Any:
        return jax.tree.map(lambda x: x[0] if x.ndim == 3 else x, conv(name))

    layers = {
        f"layer{i}": {
            "Conv_0": conv(f"blocks.{i}.conv"),
            "to_residual": dense(f"blocks.{i}.res"),
            "to_skip": dense(f"blocks.{i}.skip"),
        }
        for i in range(len(DILATIONS))
    }
    ends = {"front": conv("front"), "hidden": dense("post.1"), "logits": dense("post.3")}
    return {"params": {**layers, **ends}}


def case(name: str, *faults: Fault, **changes: Any) -> Case:
    def port(w: Any) -> Any:
        return Vocoder(**changes), convert(w)

    return Case(name, "linen", torch_model, port, inputs, faults)


CASES = [
    case("time before channels"),
    case(
        "sees the future",
        Fault("blocks.*.conv", ("conv-padding",)),
        padding="SAME",
    ),
    case("tanh and sigmoid swapped", Fault("blocks.*", ("gate-swap", "split-order")), swapped=True),
    case(
        "slope of 0.01",
        Fault("post.?", ("activation-slope",), ("post",)),
        slope=0.01,
    ),
    case(
        "residual sum not scaled",
        Fault("blocks.*", ("scale-missing", "output-scale")),
        scale=1.0,
    ),
]
