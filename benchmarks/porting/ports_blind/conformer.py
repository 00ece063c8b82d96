"""A Conformer on filter banks; a port in Linen."""

from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
import torch
from flax import linen
from torch import nn

from benchmarks.porting.case import Case, Fault, draw

BANDS, WIDTH, HEADS, DEPTH, KERNEL = 11, 16, 4, 2, 5


class FeedForward(nn.Sequential):
    def __init__(self):
        super().__init__(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 35), nn.SiLU(), nn.Linear(35, WIDTH))


class Transposed(nn.Module):
    def forward(self, x):
        return x.transpose(1, 2)


class ConvModule(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.LayerNorm(WIDTH),
            Transposed(),
            nn.Conv1d(WIDTH, 2 * WIDTH, 1),
            nn.GLU(dim=1),
            nn.Conv1d(WIDTH, WIDTH, KERNEL, padding=KERNEL // 2, groups=WIDTH),
            nn.BatchNorm1d(WIDTH),
            nn.SiLU(),
            nn.Conv1d(WIDTH, WIDTH, 1),
            Transposed(),
        )


class ConformerBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.ffn1, self.ffn2, self.conv = FeedForward(), FeedForward(), ConvModule()
        self.norm_attn = nn.LayerNorm(WIDTH)
        self.attn = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x, padding):
        x = x + 0.5 * self.ffn1(x)
        y = self.norm_attn(x)
        x = x + self.attn(y, y, y, key_padding_mask=padding, need_weights=False)[0]
        x = x + self.conv(x)
        x = x + 0.5 * self.ffn2(x)
        return self.norm(x)


class Conformer(nn.Module):
    """Log-probabilities of every second frame."""

    def __init__(self):
        super().__init__()
        self.subsample = nn.Conv2d(1, 6, 3, stride=2, padding=1)
        self.proj = nn.Linear(6 * ((BANDS + 1) // 2), WIDTH)
        self.blocks = nn.ModuleList(ConformerBlock() for _ in range(DEPTH))
        self.out = nn.Linear(WIDTH, 9)

    def forward(self, x, lengths):
        y = torch.relu(self.subsample(x[:, None]))
        y = self.proj(y.transpose(1, 2).flatten(2))
        padding = torch.arange(y.shape[1]) >= (lengths[:, None] + 1) // 2
        for block in self.blocks:
            y = block(y, padding)
        return self.out(y).log_softmax(-1)


def torch_model() -> nn.Module:
    return draw(Conformer())


def inputs() -> Any:
    x = np.random.default_rng(0).standard_normal((3, 22, BANDS)).astype(np.float32)
    return x, np.array([22, 15, 10])


class Half(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = linen.LayerNorm(epsilon=1e-5, name="ln")(x)
        return linen.Dense(WIDTH, name="b")(linen.swish(linen.Dense(35, name="a")(x)))


class Convolution(linen.Module):
    padding: Any
    swap: bool

    @linen.compact
    def __call__(self, x):
        x = linen.LayerNorm(epsilon=1e-5, name="ln")(x)
        a, b = jnp.split(linen.Dense(2 * WIDTH, name="up")(x), 2, axis=-1)
        x = linen.sigmoid(a) * b if self.swap else a * linen.sigmoid(b)
        x = linen.Conv(
            WIDTH, (KERNEL,), padding=self.padding, feature_group_count=WIDTH, name="depth"
        )(x)
        x = linen.BatchNorm(use_running_average=True, epsilon=1e-5, name="bn")(x)
        return linen.Dense(WIDTH, name="down")(linen.swish(x))


class Block(linen.Module):
    half: float
    padding: Any
    swap: bool
    last: bool

    @linen.compact
    def __call__(self, x, mask):
        x = x + self.half * Half(name="first")(x)
        y = linen.LayerNorm(epsilon=1e-5, name="ln")(x)
        x = x + linen.MultiHeadAttention(HEADS, name="mhsa")(y, mask=mask)
        x = x + Convolution(self.padding, self.swap, name="conv")(x)
        x = x + self.half * Half(name="second")(x)
        return linen.LayerNorm(epsilon=1e-5, name="end")(x) if self.last else x


class Recogniser(linen.Module):
    half: float = 0.5
    padding: Any = KERNEL // 2
    swap: bool = False
    last: bool = True
    masked: bool = True
    bands_first: bool = False

    @linen.compact
    def __call__(self, x, lengths):
        y = linen.relu(linen.Conv(6, (3, 3), 2, padding=1, name="sub")(x[..., None]))
        y = y if self.bands_first else y.swapaxes(2, 3)  # channels outer, as in PyTorch's rows
        y = linen.Dense(WIDTH, name="proj")(y.reshape(*y.shape[:2], -1))
        mask = (jnp.arange(y.shape[1]) < (lengths[:, None] + 1) // 2)[:, None, None]
        for i in range(DEPTH):
            y = Block(self.half, self.padding, self.swap, self.last, name=f"block{i}")(
                y, mask if self.masked else None
            )
        return linen.log_softmax(linen.Dense(9, name="out")(y))


def convert(w: Any, last: bool = True, transposed: bool = False) -> Any:
    w = {name: jnp.asarray(x) for name, x in w.items()}

    def dense(name: str, square: bool = False) -> Any:
        kernel = w[f"{name}.weight"].reshape(len(w[f"{name}.weight"]), -1)
        return {"kernel": kernel if square else kernel.T, "bias": w[f"{name}.bias"]}

    def norm(name: str) -> Any:
        return {"scale": w[f"{name}.weight"], "bias": w[f"{name}.bias"]}

    params: dict[str, Any] = {
        "sub": {
            "kernel": w["subsample.weight"].transpose(2, 3, 1, 0),
            "bias": w["subsample.bias"],
        },
        "proj": dense("proj"),
        "out": dense("out"),
    }
    stats = {}
    for i in range(DEPTH):
        name = f"blocks.{i}"
        kernels = w[f"{name}.attn.in_proj_weight"].reshape(3, HEADS, -1, WIDTH)
        biases = w[f"{name}.attn.in_proj_bias"].reshape(3, HEADS, -1)
        out = dense(f"{name}.attn.out_proj")
        mhsa = {
            part: {"kernel": kernel.transpose(2, 0, 1), "bias": bias}
            for part, kernel, bias in zip(("query", "key", "value"), kernels, biases, strict=True)
        }
        mhsa["out"] = {"kernel": out["kernel"].reshape(HEADS, -1, WIDTH), "bias": out["bias"]}
        conv = {
            "ln": norm(f"{name}.conv.0"),
            "up": dense(f"{name}.conv.2"),
            "depth": {
                "kernel": w[f"{name}.conv.4.weight"].transpose(2, 1, 0),
                "bias": w[f"{name}.conv.4.bias"],
            },
            "bn": norm(f"{name}.conv.5"),
            "down": dense(f"{name}.conv.7", square=transposed),
        }
        params[f"block{i}"] = {
            "first": {
                "ln": norm(f"{name}.ffn1.0"),
                "a": dense(f"{name}.ffn1.1"),
                "b": dense(f"{name}.ffn1.3"),
            },
            "second": {
                "ln": norm(f"{name}.ffn2.0"),
                "a": dense(f"{name}.ffn2.1"),
                "b": dense(f"{name}.ffn2.3"),
            },
            "ln": norm(f"{name}.norm_attn"),
            "mhsa": mhsa,
            "conv": conv,
            **({"end": norm(f"{name}.norm")} if last else {}),
        }
        running = {part: w[f"{name}.conv.5.running_{part}"] for part in ("mean", "var")}
        stats[f"block{i}"] = {"conv": {"bn": running}}
    return {"params": params, "batch_stats": stats}


def port(w: Any, transposed: bool = False, **how: Any) -> Any:
    return Recogniser(**how), convert(w, how.get("last", True), transposed)


def case(name: str, *faults: Fault, **how: Any) -> Case:
    return Case(name, "linen", torch_model, partial(port, **how), inputs, faults)


CASES = [
    case("pointwise convolutions as dense layers"),
]
