"""Selective state spaces; a port as a function with an associative scan."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.porting.case import Case, Fault, draw

WIDTH, INNER, STATE, RANK, DEPTH = 10, 14, 3, 2, 2


class MambaMixer(nn.Module):
    def __init__(self):
        super().__init__()
        self.in_proj = nn.Linear(WIDTH, 2 * INNER, bias=False)
        self.conv1d = nn.Conv1d(INNER, INNER, 4, padding=3, groups=INNER)
        self.x_proj = nn.Linear(INNER, RANK + 2 * STATE, bias=False)
        self.dt_proj = nn.Linear(RANK, INNER)
        self.A_log = nn.Parameter(torch.zeros(INNER, STATE))
        self.D = nn.Parameter(torch.ones(INNER))
        self.out_proj = nn.Linear(INNER, WIDTH, bias=False)

    def forward(self, x):
        length = x.shape[1]
        x, gate = self.in_proj(x).chunk(2, dim=-1)
        x = F.silu(self.conv1d(x.transpose(1, 2))[..., :length]).transpose(1, 2)
        dt, B, C = self.x_proj(x).split([RANK, STATE, STATE], dim=-1)
        dt = F.softplus(self.dt_proj(dt))
        A = -torch.exp(self.A_log)
        h, ys = x.new_zeros(len(x), INNER, STATE), []
        for t in range(length):
            step = dt[:, t, :, None]
            h = torch.exp(step * A) * h + step * B[:, t, None] * x[:, t, :, None]
            ys.append((h * C[:, t, None]).sum(-1))
        y = torch.stack(ys, dim=1) + self.D * x
        return self.out_proj(y * F.silu(gate))


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.mixer = nn.RMSNorm(WIDTH, eps=1e-5), MambaMixer()

    def forward(self, x):
        return x + self.mixer(self.norm(x))


class Mamba(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(5, WIDTH)
        self.layers = nn.ModuleList(Layer() for _ in range(DEPTH))
        self.norm, self.head = nn.RMSNorm(WIDTH, eps=1e-5), nn.Linear(WIDTH, 3)

    def forward(self, x):
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


def torch_model() -> nn.Module:
    return draw(Mamba())


def inputs() -> Any:
    return (np.random.default_rng(0).standard_normal((2, 17, 5)).astype(np.float32),)


def convert(w: Any) -> Any:
    w = {name: jnp.asarray(x) for name, x in w.items()}
    layers = [
        {
            "norm": w[f"layers.{i}.norm.weight"],
            **{
                name: w[f"layers.{i}.mixer.{name}.weight"].T
                for name in ("in_proj", "x_proj", "dt_proj", "out_proj")
            },
            "conv": w[f"layers.{i}.mixer.conv1d.weight"][:, 0].T,
            "conv_bias": w[f"layers.{i}.mixer.conv1d.bias"],
            "dt_bias": w[f"layers.{i}.mixer.dt_proj.bias"],
            "A_log": w[f"layers.{i}.mixer.A_log"],
            "D": w[f"layers.{i}.mixer.D"],
        }
        for i in range(DEPTH)
    ]
    return {
        "embed": (w["embed.weight"].T, w["embed.bias"]),
        "layers": layers,
        "norm": w["norm.weight"],
        "head": (w["head.weight"].T, w["head.bias"]),
    }


def causal_conv(x: jax.Array, taps: jax.Array, bias: jax.Array, shift: int = 3) -> jax.Array:
    """Depthwise, (time, channels): a sum of shifted copies, `shift` steps back at most."""
    padded = jnp.pad(x, ((shift, len(taps) - 1 - shift), (0, 0)))
    return sum(tap * padded[i : i + len(x)] for i, tap in enumerate(taps)) + bias


def scan(decay: jax.Array, drive: jax.Array) -> jax.Array:
    """h_t = decay_t * h_{t-1} + drive_t for all t at once."""

    def join(a, b):
        return b[0] * a[0], b[0] * a[1] + b[1]

    return jax.lax.associative_scan(join, (decay, drive))[1]


def mixer(p: Any, x: jax.Array, step: Any, convolve: Any, states: Any) -> jax.Array:
    x, gate = jnp.split(x @ p["in_proj"], 2, axis=-1)
    x = jax.nn.silu(convolve(x, p["conv"], p["conv_bias"]))
    dt, B, C = jnp.split(x @ p["x_proj"], [RANK, RANK + STATE], axis=-1)
    dt = step(dt @ p["dt_proj"] + p["dt_bias"])
    decay = jnp.exp(-jnp.einsum("tc,cs->tcs", dt, jnp.exp(p["A_log"])))
    h = states(scan(decay, jnp.einsum("tc,ts->tcs", dt * x, B)))
    y = jnp.einsum("tcs,ts->tc", h, C) + p["D"] * x
    return (y * jax.nn.silu(gate)) @ p["out_proj"]


def mamba(
    params: Any,
    x: jax.Array,
    step: Any = jax.nn.softplus,
    convolve: Any = causal_conv,
    states: Any = lambda h: h,
) -> jax.Array:
    def rms(x, gain):
        return x / jnp.sqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-5) * gain

    def one(x):
        x = x @ params["embed"][0] + params["embed"][1]
        for p in params["layers"]:
            x = x + mixer(p, rms(x, p["norm"]), step, convolve, states)
        return rms(x, params["norm"]) @ params["head"][0] + params["head"][1]

    return jax.vmap(one)(x)


def case(name: str, *faults: Fault, **changes: Any) -> Case:
    def port(w: Any) -> Any:
        return partial(mamba, **changes), convert(w)

    return Case(name, "function", torch_model, port, inputs, faults)


MIXER = "layers.*.mixer"
CASES = [
    case("associative scan"),
    case("steps by relu", Fault(MIXER, ("activation",)), step=jax.nn.relu),
    case(
        "convolution sees the next step",
        Fault(f"{MIXER}.conv1d", ("conv-padding",), (MIXER,)),
        convolve=partial(causal_conv, shift=2),
    ),
    case(
        "no gradient through the states",
        Fault(MIXER, ("stopped-gradient",)),
        states=jax.lax.stop_gradient,
    ),
]
