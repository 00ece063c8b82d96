"""A U-Net with GroupNorm; a port in NNX, channels last."""

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


class DoubleConv(nn.Module):
    def __init__(self, inner, outer):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(inner, outer, 3, padding=1), nn.GroupNorm(4, outer)
        self.conv2, self.norm2 = nn.Conv2d(outer, outer, 3, padding=1), nn.GroupNorm(4, outer)

    def forward(self, x):
        x = F.silu(self.norm1(self.conv1(x)))
        return F.silu(self.norm2(self.conv2(x)))


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.inc = DoubleConv(2, 8)
        self.down1, self.down2 = DoubleConv(8, 12), DoubleConv(12, 16)
        self.up1, self.conv1 = nn.ConvTranspose2d(16, 12, 2, 2), DoubleConv(24, 12)
        self.up2, self.conv2 = nn.ConvTranspose2d(12, 8, 2, 2), DoubleConv(16, 8)
        self.outc = nn.Conv2d(8, 3, 1)

    def forward(self, x):
        a = self.inc(x)
        b = self.down1(F.max_pool2d(a, 2))
        c = self.down2(F.max_pool2d(b, 2))
        x = self.conv1(torch.cat([b, self.up1(c)], dim=1))
        x = self.conv2(torch.cat([a, self.up2(x)], dim=1))
        return self.outc(x)


def torch_model() -> nn.Module:
    return draw(UNet())


def inputs() -> Any:
    x = np.random.default_rng(0).standard_normal((2, 2, 12, 20)).astype(np.float32)
    return {"torch": (x,), "jax": (x.transpose(0, 2, 3, 1),)}


class ConvPair(nnx.Module):
    def __init__(self, cin, cout, groups, *, rngs):
        self.convs = nnx.List(
            [nnx.Conv(c, cout, kernel_size=(3, 3), rngs=rngs) for c in (cin, cout)]
        )
        self.norms = nnx.List(
            [nnx.GroupNorm(cout, num_groups=groups, epsilon=1e-5, rngs=rngs) for _ in range(2)]
        )

    def __call__(self, x):
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = jax.nn.swish(norm(conv(x)))
        return x


def skip_first(skip: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.concatenate([skip, x], axis=-1)


def skip_last(skip: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.concatenate([x, skip], axis=-1)


class Segmenter(nnx.Module):
    widths = (8, 12, 16)

    def __init__(self, rngs, groups=4, join=skip_first, middle=None):
        a, b, c = self.widths
        up = partial(nnx.ConvTranspose, kernel_size=(2, 2), strides=(2, 2), rngs=rngs)
        self.encoder = nnx.List(
            ConvPair(i, o, groups, rngs=rngs) for i, o in ((2, a), (a, b), (b, c))
        )
        self.upsample = nnx.List([up(c, b), up(b, a)])
        self.decoder = nnx.List([ConvPair(2 * x, x, groups, rngs=rngs) for x in (b, a)])
        self.to_mask = nnx.Conv(a, 3, (1, 1), rngs=rngs)
        self.join, self.middle = join, middle

    def __call__(self, x):
        skips = []
        for i, encode in enumerate(self.encoder):
            x = encode(nnx.max_pool(x, (2, 2), (2, 2)) if i else x)
            skips.append(x)
        if self.middle is not None:
            x = x.astype(self.middle).astype(x.dtype)
        for up, decode, skip in zip(self.upsample, self.decoder, skips[-2::-1], strict=True):
            x = decode(self.join(skip, up(x)))
        return self.to_mask(x)


def flipped(kernel: Any) -> Any:
    """PyTorch's (in, out, H, W) as flax's transposed convolution takes it."""
    return kernel.transpose(2, 3, 0, 1)[::-1, ::-1]


def port(w: Any, up: Any = flipped, **changes: Any) -> Any:
    model = Segmenter(nnx.Rngs(0), **changes)

    def fill(layer: Any, name: str, weight: Any, leaf: str = "kernel") -> None:
        setattr(layer, leaf, nnx.Param(jnp.asarray(weight(w[f"{name}.weight"]))))
        layer.bias = nnx.Param(jnp.asarray(w[f"{name}.bias"]))

    def pair(module: ConvPair, name: str) -> None:
        for i in range(2):
            fill(module.convs[i], f"{name}.conv{i + 1}", lambda x: x.transpose(2, 3, 1, 0))
            fill(module.norms[i], f"{name}.norm{i + 1}", lambda x: x, "scale")

    for module, name in zip(model.encoder, ("inc", "down1", "down2"), strict=True):
        pair(module, name)
    for i in range(2):
        pair(model.decoder[i], f"conv{i + 1}")
        fill(model.upsample[i], f"up{i + 1}", up)
    fill(model.to_mask, "outc", lambda x: x.transpose(2, 3, 1, 0))
    return model


def case(name: str, *faults: Fault, float32: bool = False, **changes: Any) -> Case:
    return Case(name, "nnx", torch_model, partial(port, **changes), inputs, faults, float32)


CASES = [
    case("channels last"),
    case("two groups for four", Fault("*.norm?", ("groups",)), groups=2),
    case(
        "transposed convolutions not flipped",
        Fault("up?", ("kernel-layout",), in_weights=True),
        up=lambda kernel: kernel.transpose(2, 3, 0, 1),
    ),
    case(
        "skip and upsampled in the other order",
        Fault("", ("split-order", "wrong-source"), ("conv?", "conv?.conv1")),
        join=skip_last,
    ),
    case(
        "bfloat16 at the bottom",
        Fault("down2", ("precision",), ("", "down2.norm2", "up1")),
        middle=jnp.bfloat16,
    ),
]
