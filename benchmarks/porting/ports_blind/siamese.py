"""Two views and a contrastive loss; a port in Linen."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import linen
from torch import nn
from torch.nn import functional as F

from benchmarks.porting.case import Case, Fault, draw

BATCH, FEATURES, WIDTH, SPACE = 6, 13, 15, 8


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.fc1, self.fc2 = (
            nn.LayerNorm(WIDTH),
            nn.Linear(WIDTH, 2 * WIDTH),
            nn.Linear(2 * WIDTH, WIDTH),
        )
        self.act = nn.Mish()

    def forward(self, x):
        return x + self.fc2(self.act(self.fc1(self.norm(x))))


class Tower(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Linear(FEATURES, WIDTH), Residual(), Residual(), nn.Linear(WIDTH, SPACE)
        )


class Siamese(nn.Module):
    """The loss of SimCLR, and the predictions of one view from the other as in BYOL."""

    def __init__(self):
        super().__init__()
        self.tower, self.predictor = Tower(), nn.Linear(SPACE, SPACE)
        self.log_temperature = nn.Parameter(torch.tensor([0.0]))

    def forward(self, a, b):
        a, b = self.tower(a), self.tower(b)
        z = F.normalize(torch.cat([a, b]), dim=-1)
        scores = z @ z.T * self.log_temperature.exp()
        scores = scores.masked_fill(torch.eye(len(z), dtype=torch.bool), float("-inf"))
        labels = torch.arange(len(z)).roll(len(a))
        target = F.normalize(b.detach(), dim=-1)
        distance = (F.normalize(self.predictor(a), dim=-1) - target).square().sum(-1)
        return {"contrast": F.cross_entropy(scores, labels), "distance": distance, "z": z}


def torch_model() -> nn.Module:
    return draw(Siamese())


def inputs() -> Any:
    rng = np.random.default_rng(0)
    return tuple(rng.standard_normal((BATCH, FEATURES)).astype(np.float32) for _ in range(2))


def unit(x: jax.Array, axis: int = -1) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.sum(x * x, axis=axis, keepdims=True))


def mish(x: jax.Array) -> jax.Array:
    return x * jnp.tanh(jax.nn.softplus(x))


class Trunk(linen.Module):
    act: Callable

    @linen.compact
    def __call__(self, x):
        x = linen.Dense(WIDTH, name="stem")(x)
        for i in range(2):
            y = linen.LayerNorm(epsilon=1e-5, name=f"norm{i}")(x)
            y = self.act(linen.Dense(2 * WIDTH, name=f"up{i}")(y))
            x = x + linen.Dense(WIDTH, name=f"down{i}")(y)
        return linen.Dense(SPACE, name="space")(x)


class TwoViews(linen.Module):
    act: Callable = mish
    axis: int = -1
    temperature: bool = True
    detach: Callable = jax.lax.stop_gradient
    diagonal: bool = True
    exponent: Callable = jnp.exp
    roll: int = BATCH

    @linen.compact
    def __call__(self, a, b):
        both = Trunk(self.act, name="trunk")(jnp.concatenate([a, b]))
        a, b = jnp.split(both, 2)
        z = unit(both, self.axis)
        t = self.param("log_t", linen.initializers.zeros, ())
        scores = jnp.einsum("id,jd->ij", z, z)
        scores = scores * self.exponent(t) if self.temperature else scores
        if self.diagonal:
            scores = jnp.where(jnp.eye(len(z), dtype=bool), -jnp.inf, scores)
        labels = jnp.roll(jnp.arange(len(z)), self.roll)
        log_p = scores - jax.nn.logsumexp(scores, axis=-1, keepdims=True)
        contrast = -log_p[jnp.arange(len(z)), labels].mean()
        guess = unit(linen.Dense(SPACE, name="predict")(a))
        distance = 2 - 2 * jnp.sum(guess * unit(self.detach(b)), axis=-1)
        return {"contrast": contrast, "distance": distance, "z": z}


def convert(w: Any) -> Any:
    def dense(name: str) -> Any:
        return {
            "kernel": jnp.asarray(w[f"{name}.weight"]).T,
            "bias": jnp.asarray(w[f"{name}.bias"]),
        }

    trunk = {"stem": dense("tower.0"), "space": dense("tower.3")}
    for i in range(2):
        norm = f"tower.{i + 1}.norm"
        trunk[f"norm{i}"] = {
            "scale": jnp.asarray(w[f"{norm}.weight"]),
            "bias": jnp.asarray(w[f"{norm}.bias"]),
        }
        trunk[f"up{i}"], trunk[f"down{i}"] = (dense(f"tower.{i + 1}.fc{j}") for j in (1, 2))
    t = jnp.asarray(w["log_temperature"][0])
    return {"params": {"trunk": trunk, "predict": dense("predictor"), "log_t": t}}


def case(name: str, *faults: Fault, **how: Any) -> Case:
    return Case(name, "linen", torch_model, lambda w: (TwoViews(**how), convert(w)), inputs, faults)


CASES = [
    case("one pass of both views"),
    case("features normalised over the batch", Fault("", ("norm-axis",)), axis=0),
    case("no temperature", Fault("", ("scale-missing", "output-scale")), temperature=False),
    case("a gradient through the target", Fault("", ("stopped-gradient",)), detach=lambda x: x),
    case("a view compared with itself", Fault("", ("mask-missing",)), diagonal=False),
    case("labels one place on", Fault("", ("label-shift", "wrong-source")), roll=BATCH + 1),
    case("silu for mish", Fault("tower.?.act", ("activation",), ("tower.?",)), act=jax.nn.silu),
]
