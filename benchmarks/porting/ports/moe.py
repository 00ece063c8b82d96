"""Layers of routed experts; a port as a function in which all experts run, vmapped."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.porting.case import Case, Fault, draw

WIDTH, HIDDEN, EXPERTS, CHOSEN, DEPTH = 12, 17, 5, 2, 3


class RMSNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x):
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


class Expert(nn.Module):
    def __init__(self):
        super().__init__()
        self.w1 = nn.Linear(WIDTH, HIDDEN, bias=False)
        self.w2 = nn.Linear(HIDDEN, WIDTH, bias=False)
        self.w3 = nn.Linear(WIDTH, HIDDEN, bias=False)

    def forward(self, x):
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class SparseMoE(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(WIDTH, EXPERTS, bias=False)
        self.experts = nn.ModuleList(Expert() for _ in range(EXPERTS))

    def forward(self, x):
        flat = x.reshape(-1, x.shape[-1])
        probs = F.softmax(self.gate(flat), dim=-1)
        values, chosen = torch.topk(probs, CHOSEN)
        values = values / values.sum(dim=-1, keepdim=True)
        out = torch.zeros_like(flat)
        for i, expert in enumerate(self.experts):
            rows, slots = torch.where(chosen == i)
            out.index_add_(0, rows, expert(flat[rows]) * values[rows, slots, None])
        return out.view_as(x)


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.moe = RMSNorm(), SparseMoE()

    def forward(self, x):
        return x + self.moe(self.norm(x))


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(7, WIDTH)
        self.layers = nn.ModuleList(Layer() for _ in range(DEPTH))
        self.norm, self.head = RMSNorm(), nn.Linear(WIDTH, 4)

    def forward(self, x):
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


def torch_model() -> nn.Module:
    return draw(Network())


def inputs() -> Any:
    return (np.random.default_rng(0).standard_normal((2, 19, 7)).astype(np.float32),)


def convert(w: Any) -> Any:
    def experts(i: int, name: str) -> jax.Array:
        return jnp.stack(
            [jnp.asarray(w[f"layers.{i}.moe.experts.{e}.{name}.weight"].T) for e in range(EXPERTS)]
        )

    return {
        "embed": (jnp.asarray(w["embed.weight"]), jnp.asarray(w["embed.bias"])),
        "layers": [
            {
                "norm": jnp.asarray(w[f"layers.{i}.norm.weight"]),
                "router": jnp.asarray(w[f"layers.{i}.moe.gate.weight"].T),
                "wi_0": experts(i, "w1"),
                "wi_1": experts(i, "w3"),
                "wo": experts(i, "w2"),
            }
            for i in range(DEPTH)
        ],
        "norm": jnp.asarray(w["norm.weight"]),
        "head": (jnp.asarray(w["head.weight"]), jnp.asarray(w["head.bias"])),
    }


def softmax_of_chosen(logits: jax.Array) -> jax.Array:
    """Weights of all experts, zero but for the chosen ones; the same as renormalising."""
    values, indices = jax.lax.top_k(logits, CHOSEN)
    chosen = jax.nn.one_hot(indices, EXPERTS, dtype=logits.dtype)
    return jnp.einsum("...c,...ce->...e", jax.nn.softmax(values), chosen)


def not_renormalised(logits: jax.Array) -> jax.Array:
    values, indices = jax.lax.top_k(jax.nn.softmax(logits), CHOSEN)
    chosen = jax.nn.one_hot(indices, EXPERTS, dtype=logits.dtype)
    return jnp.einsum("...c,...ce->...e", values, chosen)


def over_tokens(logits: jax.Array) -> jax.Array:
    """A softmax over the wrong axis, then the choice and its renormalisation."""
    values, indices = jax.lax.top_k(jax.nn.softmax(logits, axis=-2), CHOSEN)
    values = values / values.sum(-1, keepdims=True)
    return jnp.einsum(
        "...c,...ce->...e", values, jax.nn.one_hot(indices, EXPERTS, dtype=logits.dtype)
    )


def expert(x: jax.Array, wi_0: jax.Array, wi_1: jax.Array, wo: jax.Array) -> jax.Array:
    return (jax.nn.silu(x @ wi_0) * (x @ wi_1)) @ wo


def network(params: Any, x: jax.Array, route: Any = softmax_of_chosen, shift: float = 0.0) -> Any:
    def rms(x, gain, shift=0.0):
        return x / jnp.sqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-6) * (gain + shift)

    def dense(x, kernel, bias):
        return jnp.einsum("btd,fd->btf", x, kernel) + bias

    x = dense(x, *params["embed"])
    for p in params["layers"]:
        y = rms(x, p["norm"], shift)
        every = jax.vmap(expert, in_axes=(None, 0, 0, 0))(y, p["wi_0"], p["wi_1"], p["wo"])
        x = x + jnp.einsum("ebtd,bte->btd", every, route(y @ p["router"]))
    return dense(rms(x, params["norm"]), *params["head"])


def case(name: str, *faults: Fault, **changes: Any) -> Case:
    def port(w: Any) -> Any:
        return partial(network, **changes), convert(w)

    return Case(name, "function", torch_model, port, inputs, faults)


ROUTER = Fault("layers.*.moe", ("router-normalisation",))
CASES = [
    case("all experts, vmapped"),
    case("weights of the chosen not renormalised", ROUTER, route=not_renormalised),
    case("softmax over the tokens", Fault("layers.*.moe", ("softmax-axis",)), route=over_tokens),
    case(
        "gains around zero, and not renormalised",
        Fault("layers.*.norm", ("norm-gain",)),
        ROUTER,
        route=not_renormalised,
        shift=1.0,
    ),
]
