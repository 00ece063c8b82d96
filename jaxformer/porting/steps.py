"""Optimizer steps of both sides, once values and gradients agree.

Both optimizers get the same gradients, those of the port at its own parameters: the rounding of a
gradient that is truly zero, of which Adam makes a whole step, is then no difference. A parameter of
which the port has no array of its own, such as a part of a fused kernel, gets PyTorch's. The update
of each other parameter is compared step by step. Where one departs, PyTorch's optimizer is run
again with other settings until its updates are the port's (`settings.py`).
"""

import copy
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax
import torch

from jaxformer.errors import UserError
from jaxformer.porting.backward import Gradients, Part
from jaxformer.porting.factories import user_code
from jaxformer.porting.findings import Fault
from jaxformer.porting.settings import Setting, settings
from jaxformer.porting.sides import JaxSide, TorchSide, copied

STEP_BOUND = 1e-5
"""Of the update of a parameter, relative: a learning rate may be a number of float32, and PyTorch
clips gradients at their norm plus 1e-6."""
ROUNDING = 1e-14
"""Of a parameter: an update that is lost in it is not seen."""
AS_IT_IS = Setting("", "")
EQUALLY = 100.0
"""Settings whose residuals differ by no more than this factor explain the updates equally well."""

Arrays = dict[str, np.ndarray]
"""By PyTorch's names of the parameters, or by the paths of the port's leaves."""


def require_optimizers(port: JaxSide, original: TorchSide, count: int) -> None:
    """Refuse steps without an optimizer on both sides.

    Raises:
        UserError: when there is none, or the number of steps is negative.
    """
    if count < 0:
        raise UserError(f"--steps {count} is negative: choose 1 or more")
    if count and port.optimizer is None:
        raise UserError(
            f"--steps {count}: --jax has no optimizer: return (model, optax.adamw(...))"
        )
    if count and original.optimizer is None:
        raise UserError(
            f"--steps {count}: --torch has no optimizer: return (model, torch.optim.Adam(...))"
        )


class Run:
    """PyTorch's model, optimizer and schedules at work; a copy of the user's."""

    def __init__(self, steps: "Steps", setting: Setting):
        self.source, self.names, self.setting = steps.source, list(steps.parts), setting
        original = steps.original
        self.model, self.optimizer, self.schedules = original.copied()
        setting.prepare(self.optimizer)
        for schedule in self.schedules if setting.shift > 0 else ():
            schedule.step()
        self.late = setting.shift < 0

    def fork(self) -> "Run":
        """The same at this step; each goes its own way."""
        new = copy.copy(self)
        new.model, new.optimizer, new.schedules = copied(self.model, self.optimizer, self.schedules)
        return new

    def unpaired(self) -> Arrays:
        """PyTorch's gradients of the parameters that no array of the port holds."""
        if len(self.names) == len(self.source.named):
            return {}
        found = self.source.torch_gradients(model=copy.deepcopy(self.model))
        return {self.source.values[i].name: gradient for i, gradient in found.items()}

    def step(self, gradients: Mapping[str, np.ndarray], scale: float = 1.0) -> Arrays:
        """The change of each parameter in one step, whose learning rate is times `scale`."""
        assert isinstance(self.model, torch.nn.Module)
        named = {n: p for n, p in self.model.named_parameters() if n in self.names}
        before = {name: p.detach().numpy().copy() for name, p in named.items()}
        gradients = self.setting.gradients({**self.unpaired(), **gradients})
        for name, parameter in self.model.named_parameters():
            parameter.grad = torch.tensor(gradients[name])
        self.setting.before(self.optimizer)
        rates = [group["lr"] for group in self.optimizer.param_groups]
        for group in self.optimizer.param_groups:
            group["lr"] = group["lr"] * scale
        self.optimizer.step()
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        for schedule in () if self.late else self.schedules:
            schedule.step()
        self.late = False
        return {name: p.detach().numpy() - before[name] for name, p in named.items()}


@dataclasses.dataclass(frozen=True)
class Attempt:
    """How far the port's updates are from PyTorch's under other settings."""

    residual: float
    word: str
    what: str


class Steps:
    """A number of steps of both optimizers.

    Args:
        gradients: of both sides; they agree.
        port: the JAX side.
        original: the PyTorch side.
        count: how many steps.
    """

    def __init__(
        self,
        gradients: Gradients,
        port: JaxSide,
        original: TorchSide,
        count: int,
    ):
        self.source, self.port, self.original, self.count = gradients, port, original, count
        self.parts = self.paired()
        self.gradients: list[Arrays] = []
        """Of each step, at the port's parameters."""
        self.changes: list[Arrays] = []
        """Of each step, by the port."""
        with user_code("the JAX optimizer"), jax.enable_x64(True):
            self.run_port()

    def paired(self) -> dict[str, Part]:
        """The part of the port that holds each parameter: of equal ones that of its gradient."""
        found = {}
        for number, gradient in self.source.theirs.items():
            value = self.source.values[number]

            def error(part: Part, gradient: np.ndarray = gradient) -> float:
                difference = part.of(self.source.mine) - part.layout.apply(gradient)
                return float(np.linalg.norm(difference))

            parts = self.source.parts(value) if value.function == "parameter" else []
            if parts:
                found[value.name] = min(parts, key=error)
        return found

    def run_port(self) -> None:
        """Take the steps of the port, from its weights in float64."""
        optimizer, tree = self.port.optimizer, self.port.trainable()
        assert optimizer is not None
        names = jax.tree.leaves(tree)
        leaves = {name: np.asarray(self.port.leaves[name], np.float64) for name in names}

        def arranged(arrays: Arrays) -> Any:
            return jax.tree.map(lambda name: jax.numpy.asarray(arrays[name]), tree)

        state = optimizer.init(arranged(leaves))
        for _ in range(self.count):
            gradients = self.source.at(leaves)
            params = arranged(leaves)
            updates, state = optimizer.update(arranged(gradients), state, params)
            new = [np.asarray(x) for x in jax.tree.leaves(optax.apply_updates(params, updates))]
            changes = {n: x - leaves[n] for n, x in zip(names, new, strict=True)}
            self.gradients.append(self.as_torch(gradients))
            self.changes.append(self.as_torch(changes))
            leaves = dict(zip(names, new, strict=True))

    def as_torch(self, arrays: Arrays) -> Arrays:
        """Arrays of the port's leaves as those of PyTorch's parameters.

        What is no parameter of the port's has no gradient and does not change.
        """
        shapes = {value.name: value.array.shape for value in self.source.values}
        found = {}
        for name, part in self.parts.items():
            leaf = part.place.name
            array = arrays.get(leaf, np.zeros(np.shape(self.port.leaves[leaf])))
            found[name] = part.layout.invert(part.of({part.place.index: array}), shapes[name])
        return found

    def run_torch(self, setting: Setting = AS_IT_IS) -> list[Arrays]:
        """PyTorch's changes in each step."""
        run = Run(self, setting)
        return [run.step(gradients) for gradients in self.gradients]

    def faults(self) -> Iterator[Fault]:
        """The first update that departs, and why."""
        with user_code("the PyTorch optimizer"):
            theirs = self.run_torch()
        for step in range(self.count):
            errors = self.errors(theirs, step)
            wrong = [name for name in errors if not errors[name] <= STEP_BOUND]
            if not wrong:
                continue
            first = wrong[0]
            cause = self.cause(self.residual(theirs))
            more = f" and {len(wrong) - 1} more of {len(errors)}" if len(wrong) > 1 else ""
            yield Fault(
                torch=first.rpartition(".")[0],
                jax=self.parts[first].place.name,
                quantity="update",
                error=errors[first],
                bound=STEP_BOUND,
                cause=cause.word if cause else None,
                evidence=f"step {step + 1} updates {first}{more} otherwise"
                + (f"; {cause.what}" if cause else ""),
            )
            return

    def errors(self, theirs: Sequence[Arrays], step: int) -> dict[str, float]:
        """The error of each parameter's update, relative to the larger of both."""
        found = {}
        for name, change in theirs[step].items():
            mine, start = self.changes[step][name], self.source.named[name].array
            difference = float(np.linalg.norm(mine - change))
            size = max(float(np.linalg.norm(change)), float(np.linalg.norm(mine)))
            seen = difference > ROUNDING * float(np.linalg.norm(start))
            found[name] = difference / size if seen else 0.0
        return found

    def residual(self, theirs: Sequence[Arrays]) -> float:
        """The worst error of all steps and parameters."""
        errors = (error for i in range(self.count) for error in self.errors(theirs, i).values())
        return max(errors, default=0.0)

    def cause(self, before: float) -> Attempt | None:
        """The setting with which PyTorch's updates are the port's, and the evidence."""
        found = []
        for setting in settings(self.original.optimizer, bool(self.original.schedules)):
            try:
                theirs = self.run_torch(setting)
            except (RuntimeError, ValueError, TypeError, KeyError, AttributeError):
                continue  # a setting that this optimizer does not have
            found.append(Attempt(self.residual(theirs), setting.word, setting.what))
        found.append(self.other_rates())
        best = min(attempt.residual for attempt in found)
        if not best <= STEP_BOUND:
            return None
        chosen = next(x for x in found if x.residual <= EQUALLY * max(best, ROUNDING))
        others = [x for x in found if x.word != chosen.word]
        second = min(others, key=lambda attempt: attempt.residual)
        text = f"{chosen.what} the error falls from {before:.1e} to {chosen.residual:.1e}"
        text += f"; next {second.word}, {second.residual:.1e}"
        return Attempt(chosen.residual, chosen.word, text)

    def other_rates(self) -> Attempt:
        """The learning rate of each step that comes nearest to the port's changes."""
        run = Run(self, AS_IT_IS)
        scales, theirs = [], []
        for gradients, mine in zip(self.gradients, self.changes, strict=True):
            trial = run.fork().step(gradients)
            both = [(mine[name].ravel(), change.ravel()) for name, change in trial.items()]
            size = sum(float(b @ b) for _, b in both)
            scales.append(sum(float(a @ b) for a, b in both) / size if size else 1.0)
            theirs.append(run.step(gradients, scales[-1]))
        if math.isclose(min(scales), max(scales), rel_tol=1e-5):
            what = f"with {scales[0]:.6g} times the learning rate"
            return Attempt(self.residual(theirs), "learning-rate", what)
        shown = ", ".join(f"{scale:.4g}" for scale in scales)
        return Attempt(self.residual(theirs), "schedule", f"with learning rates times {shown}")
