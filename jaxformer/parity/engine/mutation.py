"""Planted bugs: proofs that cannot fail prove nothing, so each is shown to catch what it should.

A bug is planted in the very code that users run, and the same proofs are run as without it. It
counts as caught if the proof is in bounds without it and out of bounds with it, and as named if the
layer that the proof blames is the one it was planted in.
"""

import dataclasses
import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple
from unittest import mock

from jaxformer.models.gpt import GPT
from jaxformer.parity.engine.cases import TINY, Case
from jaxformer.parity.engine.twins import Proof
from jaxformer.porting.locate import Comparison

CASE = Case(TINY, masks=("padding",), jit=False)
"""What bugs are looked for in: operation by operation, as most shapes repeat."""

SMALL = dataclasses.replace(
    CASE, config=dataclasses.replace(TINY, width=8, mlp_width=8, num_layers=1)
)
"""For proofs that compile a whole train step."""


Plant = Callable[[], AbstractContextManager]
"""While this context is open, a bug is in the code."""


class Bug(NamedTuple):
    """A mistake that is easily made."""

    name: str
    layer: str
    """Where it is planted, and so what must be blamed."""
    plant: Plant
    proof: Proof
    """The proof that must catch it."""
    case: Case = CASE


class MutantResult(NamedTuple):
    """What became of a planted bug."""

    name: str
    layer: str
    caught: bool
    named: str | None
    """The layer that was blamed."""

    @property
    def ok(self) -> bool:
        """Whether the bug was caught, and blamed on the layer it was planted in."""
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
    """Replaces a function of a module or class by what `make` makes of it."""
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


def setting(name: str, value: Any) -> Callable[[Any], None]:
    """An attribute of the module with another value."""
    return lambda module: setattr(module, name, value)


def method(name: str, function: Callable[..., Any]) -> Callable[[Any], None]:
    """A method of the module replaced; the function gets the module and its arguments."""

    def change(module: Any) -> None:
        cls = type(module)
        module.__class__ = type(f"Faulty{cls.__name__}", (cls,), {name: function})

    return change
