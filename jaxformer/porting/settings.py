"""Other settings of a PyTorch optimizer, each a mistake that the port's may have made."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch

Gradients = Mapping[str, np.ndarray]

DECAYS = (0.0, 1e-4, 5e-4, 1e-3, 5e-3, 1e-2, 5e-2, 1e-1)
EPSILONS = (0.0, 1e-16, 1e-15, 1e-12, 1e-10, 1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3)
FIRST = (0.0, 0.5, 0.8, 0.9, 0.95, 0.99)
SECOND = (0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 0.9999)
NORMS = (0.1, 0.5, 1.0, 5.0, 10.0)
"""Values that papers and libraries have."""
MANY_STEPS = 1e9
"""After so many the correction of a bias is one."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """One way in which a PyTorch optimizer could be set otherwise."""

    word: str
    """The cause."""
    what: str
    prepare: Callable[[Any], None] = lambda optimizer: None
    """Changes the optimizer before the first step."""
    before: Callable[[Any], None] = lambda optimizer: None
    """Changes it before every step."""
    gradients: Callable[[Gradients], Gradients] = lambda gradients: gradients
    shift: int = 0
    """Steps by which the schedule is ahead."""


def settings(optimizer: Any, schedules: bool) -> Iterator[Setting]:
    """All other settings, the plainest of each kind first."""
    keys = set().union(*(group.keys() for group in optimizer.param_groups))
    if "weight_decay" in keys:
        yield from _decays("decoupled_weight_decay" in keys)
    if "eps" in keys:
        for eps in EPSILONS:
            yield Setting("epsilon", f"with epsilon {eps:g}", _assigned(eps=eps))
    if "betas" in keys:
        pairs = [(b1, b2) for b1 in FIRST for b2 in SECOND]
        for betas in sorted(pairs, key=lambda pair: pair != (0.9, 0.999)):
            yield Setting("beta", f"with betas {betas}", _assigned(betas=betas))
        yield Setting("bias-correction", "without bias correction", before=_uncorrected)
    if "momentum" in keys:
        for momentum in FIRST:
            for nesterov in (False, True) if momentum else (False,):
                kind = "Nesterov momentum" if nesterov else "momentum"
                changes = _assigned(momentum=momentum, nesterov=nesterov, dampening=0)
                yield Setting("momentum", f"with {kind} {momentum}", changes)
    for key in ("amsgrad", "maximize", "nesterov"):
        if key in keys:
            words = {"nesterov": "momentum"}
            yield Setting(words.get(key, key), f"with {key} turned over", _turned(key))
    if getattr(optimizer, "_optimizer_step_pre_hooks", None):
        yield Setting("clipping", "without the hooks before its steps", _unhooked)
    for norm in NORMS:
        yield Setting(
            "clipping", f"with gradients clipped at norm {norm:g}", gradients=_clipped(norm)
        )
    for shift in (1, -1) if schedules else ():
        side = "ahead" if shift > 0 else "behind"
        yield Setting("schedule", f"with the schedule one step {side}", shift=shift)


def _decays(decoupled: bool) -> Iterator[Setting]:
    for decay in DECAYS:
        for apart in (None, True, False) if decoupled else (None,):
            kind = {None: "", True: " of the parameters", False: " in the gradients"}[apart]
            changes: dict[str, Any] = {} if apart is None else {"decoupled_weight_decay": apart}

            def prepare(optimizer: Any, decay: float = decay, changes: Any = changes) -> None:
                groups = optimizer.param_groups
                some = [g for g in groups if g["weight_decay"]] or groups
                for group in some:
                    group.update(weight_decay=decay, **changes)

            yield Setting("weight-decay", f"with weight decay {decay:g}{kind}", prepare)
    if decoupled:
        for apart in (True, False):
            kind = "of the parameters" if apart else "in the gradients"
            yield Setting(
                "weight-decay", f"with its weight decay {kind}",
                _assigned(decoupled_weight_decay=apart),
            )  # fmt: skip
    yield Setting("weight-decay", "with weight decay of matrices alone", _of_matrices)
    yield Setting("weight-decay", "with weight decay of every parameter", _of_all)


def _assigned(**values: Any) -> Callable[[Any], None]:
    def prepare(optimizer: Any) -> None:
        for group in optimizer.param_groups:
            group.update(values)

    return prepare


def _unhooked(optimizer: Any) -> None:
    optimizer._optimizer_step_pre_hooks = {}


def _turned(key: str) -> Callable[[Any], None]:
    def prepare(optimizer: Any) -> None:
        for group in optimizer.param_groups:
            group[key] = not group[key]

    return prepare


def _of_matrices(optimizer: Any) -> None:
    for group in list(optimizer.param_groups):
        vectors = [p for p in group["params"] if p.ndim < 2]
        group["params"] = [p for p in group["params"] if p.ndim >= 2]
        optimizer.param_groups.append({**group, "params": vectors, "weight_decay": 0.0})


def _of_all(optimizer: Any) -> None:
    decay = max(group["weight_decay"] for group in optimizer.param_groups)
    _assigned(weight_decay=decay)(optimizer)


def _uncorrected(optimizer: Any) -> None:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state[parameter]
            if not state:
                zeros = ["exp_avg", "exp_avg_sq"]
                zeros += ["max_exp_avg_sq"] if group.get("amsgrad") else []
                state.update({name: torch.zeros_like(parameter) for name in zeros})
            state["step"] = torch.tensor(MANY_STEPS, dtype=torch.float64)


def _clipped(norm: float) -> Callable[[Gradients], Gradients]:
    def clipped(gradients: Gradients) -> Gradients:
        size = math.sqrt(sum(float(np.vdot(g, g)) for g in gradients.values()))
        return {name: g * min(1.0, norm / size) for name, g in gradients.items()}

    return clipped
