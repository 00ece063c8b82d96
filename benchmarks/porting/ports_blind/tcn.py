"""A temporal convolutional network with weight normalisation; a port as a function."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from benchmarks.porting.case import Case, Fault, draw

SIGNALS, CHANNELS, KERNEL = 4, (7, 9, 9), 3


class Chomp(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.size = size

    def forward(self, x):
        return x[..., : -self.size].contiguous()


class TemporalBlock(nn.Module):
    def __init__(self, a, b, dilation):
        super().__init__()
        pad = (KERNEL - 1) * dilation
        self.conv1 = weight_norm(nn.Conv1d(a, b, KERNEL, padding=pad, dilation=dilation))
        self.chomp1, self.relu1 = Chomp(pad), nn.LeakyReLU(0.1)
        self.conv2 = weight_norm(nn.Conv1d(b, b, KERNEL, padding=pad, dilation=dilation))
        self.chomp2, self.relu2 = Chomp(pad), nn.LeakyReLU(0.1)
        self.downsample = nn.Conv1d(a, b, 1) if a != b else None
        self.relu = nn.LeakyReLU(0.1)

    def forward(self, x):
        y = self.relu1(self.chomp1(self.conv1(x)))
        y = self.relu2(self.chomp2(self.conv2(y)))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


class TCN(nn.Module):
    def __init__(self):
        super().__init__()
        sizes = zip((SIGNALS, *CHANNELS), CHANNELS, strict=False)
        self.network = nn.Sequential(*(TemporalBlock(a, b, 2**i) for i, (a, b) in enumerate(sizes)))
        self.norm = nn.InstanceNorm1d(CHANNELS[-1], affine=True)
        self.linear = nn.Linear(CHANNELS[-1], 5)

    def forward(self, x):
        y = self.norm(self.network(x))
        return self.linear(y[..., -1])


def torch_model() -> nn.Module:
    return draw(TCN())


def inputs() -> Any:
    return (np.random.default_rng(0).standard_normal((3, SIGNALS, 27)).astype(np.float32),)


def params_of(w: Any) -> Any:
    w = {name: jnp.asarray(x) for name, x in w.items()}

    def conv(name: str) -> Any:
        path = f"{name}.parametrizations.weight.original"
        return {"g": w[f"{path}0"], "v": w[f"{path}1"], "b": w[f"{name}.bias"]}

    blocks = []
    for i in range(len(CHANNELS)):
        block = {part: conv(f"network.{i}.{part}") for part in ("conv1", "conv2")}
        if f"network.{i}.downsample.weight" in w:
            skip = w[f"network.{i}.downsample.weight"][..., 0]
            block["skip"] = {"w": skip, "b": w[f"network.{i}.downsample.bias"]}
        blocks.append(block)
    return {
        "blocks": blocks,
        "gain": w["norm.weight"],
        "shift": w["norm.bias"],
        "head": (w["linear.weight"], w["linear.bias"]),
    }


def taps(p: Any, x: jax.Array, dilation: int, axes: Any, future: bool, flip: bool) -> jax.Array:
    """A causal convolution as a sum over its taps; x is (B, C, T)."""
    norm = jnp.sqrt(jnp.square(p["v"]).sum(axes, keepdims=True))
    kernel = p["v"] / norm * p["g"]
    kernel = kernel[..., ::-1] if flip else kernel
    size, length = kernel.shape[-1], x.shape[-1]
    pad = (size - 1) * dilation
    x = jnp.pad(x, ((0, 0), (0, 0), (pad // 2, pad - pad // 2) if future else (pad, 0)))
    pieces = [
        jnp.einsum("oc,bct->bot", kernel[..., j], x[..., j * dilation : j * dilation + length])
        for j in range(size)
    ]
    return sum(pieces) + p["b"][:, None]


def tcn(
    params: Any,
    x: jax.Array,
    slope: float = 0.1,
    axes: Any = (1, 2),
    future: bool = False,
    flip: bool = False,
    dilations: Any = (1, 2, 4),
    over: Any = -1,
    last: bool = True,
    unbiased: int = 0,
) -> jax.Array:
    act = partial(jax.nn.leaky_relu, negative_slope=slope)
    for p, dilation in zip(params["blocks"], dilations, strict=True):
        y = x
        for name in ("conv1", "conv2"):
            y = act(taps(p[name], y, dilation, axes, future, flip))
        if "skip" in p:
            x = jnp.einsum("oc,bct->bot", p["skip"]["w"], x) + p["skip"]["b"][:, None]
        x = jax.nn.leaky_relu(x + y, 0.1)
    mean = x.mean(over, keepdims=True)
    var = x.var(over, keepdims=True, ddof=unbiased)
    x = (x - mean) * jax.lax.rsqrt(var + 1e-5)
    x = x * params["gain"][:, None] + params["shift"][:, None]
    weight, bias = params["head"]
    return (x[..., -1] if last else x.mean(-1)) @ weight.T + bias


def case(name: str, *faults: Fault, **how: Any) -> Case:
    return Case(
        name, "function", torch_model, lambda w: (partial(tcn, **how), params_of(w)), inputs, faults
    )


CONVS = ("network.?.conv?", "network.?")
CASES = [
    case("a sum over taps"),
    case(
        "padded on both sides",
        Fault("network.?.conv?", ("conv-padding",), ("network.?", "network.?.chomp?")),
        future=True,
    ),
    case(
        "weights normalised over the outputs",
        Fault(
            "network.?.conv?",
            ("norm-axis",),
            (
                "network.?.conv?.parametrizations.weight",
                "network.?.conv?.parametrizations.weight.0",
            ),
        ),
        axes=(0, 1),
    ),
    case(
        "kernels of a true convolution",
        Fault("network.?.conv?", ("kernel-layout", "kernel-flip"), ("network.?",)),
        flip=True,
    ),
    case(
        "dilations of one",
        Fault("network.?.conv?", ("dilation", "conv-dilation"), ("network.?",)),
        dilations=(1, 1, 1),
    ),
    case(
        "slope of 0.01, instances normalised over channels",
        Fault("network.?.relu?", ("activation-slope",), ("network.?",)),
        Fault("norm", ("norm-axis",)),
        slope=0.01,
        over=1,
    ),
]
