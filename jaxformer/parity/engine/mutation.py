"""Planted bugs, that is mutation testing: each proof is shown to fail on the code it should reject.

A bug is planted in the code that users run, and the same proof runs as without it. The bug counts
as caught if the proof is in bounds without it and out of bounds with it, and as named if the layer
that the proof finds at fault is the one it was planted in.
"""

import dataclasses
import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple
from unittest import mock

from jaxformer.models.gpt import GPT
from jaxformer.parity.engine.cases import TINY, Case
from jaxformer.parity.engine.comparison import Comparison, Proof

CASE = Case(TINY, masks=("padding",), jit=False)
"""What most bugs are planted in: operation by operation, as most shapes repeat."""

SMALL = dataclasses.replace(
    CASE, config=dataclasses.replace(TINY, width=8, mlp_width=8, num_layers=1)
)
"""For proofs that compile a whole train step."""

Plant = Callable[[], AbstractContextManager]
"""The bug is in the code while this context is open."""


class Bug(NamedTuple):
    """A mistake that people make."""

    name: str
    layer: str
    """Where it is planted, and so the layer that the proof must name."""
    plant: Plant
    proof: Proof
    """The proof that must catch it."""
    case: Case = CASE


class MutantResult(NamedTuple):
    """What the proof made of a planted bug."""

    name: str
    layer: str
    caught: bool
    named: str | None
    """The layer that the proof found at fault."""

    @property
    def ok(self) -> bool:
        """Whether the bug was caught and its layer named."""
        return self.caught and self.named == self.layer


def run_mutant(bug: Bug) -> MutantResult:
    """Plant the bug and run its proof."""
    if not _without_bugs(bug.proof, bug.case).ok:
        return MutantResult(bug.name, bug.layer, False, None)
    with bug.plant():
        found = bug.proof(bug.case)
    return MutantResult(bug.name, bug.layer, not found.ok, found.layer)


@functools.cache
def _without_bugs(proof: Proof, case: Case) -> Comparison:
    return proof(case)


def patched(owner: Any, name: str, make: Callable[[Any], Any]) -> Plant:
    """Replaces a function of a module or class, `f` by `make(f)`."""
    return lambda: mock.patch.object(owner, name, make(getattr(owner, name)))


def in_module(path: str, change: Callable[[Any], None], model_class: type = GPT) -> Plant:
    """Changes one module of every model of a class that is built."""

    def make(init: Callable[..., None]) -> Callable[..., None]:
        def changed(self: Any, *args: Any) -> None:
            init(self, *args)
            module: Any = self
            for part in path.split("."):
                module = module[int(part)] if part.isdigit() else getattr(module, part)
            change(module)

        return changed

    return patched(model_class, "__init__", make)


def batch_changed(change: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """An objective that computes its loss on another batch."""
    return lambda function: lambda model, batch, key: function(model, change(batch), key)


def setting(name: str, value: Any) -> Callable[[Any], None]:
    """An attribute of the module with another value."""
    return lambda module: setattr(module, name, value)


def method(name: str, function: Callable[..., Any]) -> Callable[[Any], None]:
    """A method of the module replaced by a function of the module and the arguments."""

    def change(module: Any) -> None:
        cls = type(module)
        module.__class__ = type(f"Faulty{cls.__name__}", (cls,), {name: function})

    return change
