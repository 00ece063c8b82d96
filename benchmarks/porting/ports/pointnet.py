"""A network of point sets with masks; a port as a function of one set, vmapped."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import nn

from benchmarks.porting.case import Case, Fault, draw

HIDDEN, WIDTH, CLASSES = 12, 18, 4


class PointBlock(nn.Module):
    """Every point, then every point beside the mean of its set."""

    def __init__(self, inner, outer):
        super().__init__()
        self.own, self.shared = nn.Linear(inner, outer), nn.Linear(inner, outer, bias=False)
        self.norm = nn.BatchNorm1d(outer)

    def forward(self, x, mask):
        count = mask.sum(1, keepdim=True)[..., None]
        mean = (x * mask[..., None]).sum(1, keepdim=True) / count
        y = self.own(x) + self.shared(mean)
        return torch.relu(self.norm(y.transpose(1, 2)).transpose(1, 2))


class AttentionPool(nn.Module):
    def __init__(self):
        super().__init__()
        self.score = nn.Linear(WIDTH, 3)

    def forward(self, x, mask):
        scores = self.score(x).masked_fill(~mask[..., None], float("-inf"))
        return torch.einsum("bnh,bnc->bhc", scores.softmax(dim=1), x).flatten(1)


class PointNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.block1, self.block2 = PointBlock(3, HIDDEN), PointBlock(HIDDEN, WIDTH)
        self.pool = AttentionPool()
        self.classifier = nn.Sequential(nn.Linear(4 * WIDTH, 15), nn.Tanh(), nn.Linear(15, CLASSES))

    def forward(self, points, mask):
        x = self.block2(self.block1(points, mask), mask)
        highest = x.masked_fill(~mask[..., None], float("-inf")).amax(dim=1)
        return self.classifier(torch.cat([self.pool(x, mask), highest], dim=-1))


def torch_model() -> nn.Module:
    return draw(PointNet())


def inputs() -> Any:
    rng = np.random.default_rng(0)
    points = rng.standard_normal((4, 17, 3)).astype(np.float32)
    return {"points": points, "mask": np.arange(17) < np.array([[17], [9], [12], [5]])}


def convert(w: Any) -> Any:
    def block(name: str) -> Any:
        # The normalisation in eval mode is one product and one sum.
        gain = w[f"{name}.norm.weight"] / np.sqrt(w[f"{name}.norm.running_var"] + 1e-5)
        shift = w[f"{name}.norm.bias"] - w[f"{name}.norm.running_mean"] * gain
        return {
            "own": jnp.asarray(w[f"{name}.own.weight"]),
            "bias": jnp.asarray(w[f"{name}.own.bias"]),
            "shared": jnp.asarray(w[f"{name}.shared.weight"]),
            "gain": jnp.asarray(gain),
            "shift": jnp.asarray(shift),
        }

    def dense(name: str) -> Any:
        return jnp.asarray(w[f"{name}.weight"]), jnp.asarray(w[f"{name}.bias"])

    return {
        "blocks": [block("block1"), block("block2")],
        "score": dense("pool.score"),
        "hidden": dense("classifier.0"),
        "out": dense("classifier.2"),
    }


def masked_mean(x: jax.Array, mask: jax.Array) -> jax.Array:
    return jnp.mean(x, axis=0, where=mask[:, None])


def masked_max(x: jax.Array, mask: jax.Array) -> jax.Array:
    return jnp.max(x, axis=0, where=mask[:, None], initial=-jnp.inf)


def classify(
    params: Any,
    points: jax.Array,
    mask: jax.Array,
    *,
    mean: Any = masked_mean,
    highest: Any = masked_max,
    axis: int = 0,
    valid: Any = lambda mask: mask,
) -> jax.Array:
    def one(points: jax.Array, mask: jax.Array) -> jax.Array:
        x = points
        for p in params["blocks"]:
            y = x @ p["own"].T + p["bias"] + p["shared"] @ mean(x, mask)
            x = jax.nn.relu(y * p["gain"] + p["shift"])
        kernel, bias = params["score"]
        scores = jnp.where(valid(mask)[:, None], x @ kernel.T + bias, -1e9)
        pooled = jax.nn.softmax(scores, axis=axis).T @ x
        x = jnp.concatenate([pooled.ravel(), highest(x, mask)])
        kernel, bias = params["hidden"]
        x = jnp.tanh(kernel @ x + bias)
        kernel, bias = params["out"]
        return kernel @ x + bias

    return jax.vmap(one)(points, mask)


def case(name: str, *faults: Fault, **changes: Any) -> Case:
    def port(w: Any) -> Any:
        return partial(classify, **changes), convert(w)

    # The folded normalisation is rounded to float32, and no pairing of leaves can undo it.
    return Case(name, "function", torch_model, port, inputs, faults, float32=True, carried=False)


CASES = [
    case("one set, vmapped"),
    case(
        "means over the padding too",
        Fault("block?", ("padding", "mask-missing", "pooling")),
        mean=lambda x, mask: x.mean(0),
    ),
    case("pools what is padding", Fault("pool", ("mask-inverted",)), valid=jnp.logical_not),
    case("softmax over the heads", Fault("pool", ("softmax-axis",)), axis=1),
    case("mean for maximum", Fault("", ("pooling",)), highest=masked_mean),
]
