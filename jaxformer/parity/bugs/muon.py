"""Bugs planted in Muon and in its schedule."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxformer.parity.engine.mutation import SMALL, Bug, Plant, patched
from jaxformer.parity.proofs.optimizers import prove_muon, prove_stable_schedule
from jaxformer.training import muon, optimizer, schedule


def in_bfloat16(orthogonalize: Callable[..., Any]) -> Callable[..., Any]:
    """As torch.optim.Muon has it."""
    return lambda m: orthogonalize(m.astype(jnp.bfloat16)).astype(m.dtype)


def without_nesterov(function: Callable[..., Any]) -> Callable[..., Any]:
    """The momentum alone is orthogonalised."""

    def scale_by_muon(decay: float) -> Any:
        rule = function(decay)

        def update(grads: Any, state: Any, params: Any = None) -> Any:
            _, state = rule.update(grads, state, params)
            return jax.tree.map(muon._direction, state.momentum), state

        return rule._replace(update=update)

    return scale_by_muon


def by_the_rows(m: jax.Array) -> jax.Array:
    """Jordan's factor by rows and columns, in the place of AdamW's size."""
    return math.sqrt(max(1.0, m.shape[-2] / m.shape[-1])) * muon.orthogonalize(m)


def none_of(params: Any) -> Any:
    return jax.tree.map(lambda _: False, params)


def rate_moved(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args: lambda step: function(*args)(step + 1)


def _muon(name: str, plant: Plant) -> Bug:
    return Bug(f"muon: {name}", "muon", plant, prove_muon, SMALL)


BUGS = [
    Bug(
        "stable schedule one step ahead",
        "stable_schedule",
        patched(schedule, "warmup_stable_decay", rate_moved),
        prove_stable_schedule,
        SMALL,
    ),
    _muon("iteration in bfloat16", patched(muon, "orthogonalize", in_bfloat16)),
    _muon("four iterations", patched(muon, "ITERATIONS", lambda _: 4)),
    _muon("momentum without Nesterov", patched(optimizer, "scale_by_muon", without_nesterov)),
    _muon("other factor of the shape", patched(muon, "_direction", lambda _: by_the_rows)),
    _muon("AdamW for the kernels too", patched(optimizer, "is_hidden_kernel", lambda _: none_of)),
]
