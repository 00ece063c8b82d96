"""A tape: every value that a JAX function computes, and the operations between them.

`Tape.replay` runs it again with some values replaced, and only what depends on them.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import Any

import numpy as np

_MOVES = (
    "convert_element_type", "reshape", "transpose", "squeeze", "expand_dims", "broadcast_in_dim",
    "copy", "slice", "stack",
)  # fmt: skip
_NOTHING: Mapping[tuple[int, int], Any] = {}


@dataclasses.dataclass(frozen=True)
class Place:
    """One value on the tape: what made it, from which values, where in the source."""

    index: int
    primitive: str
    """Its operation, or `leaf`, `input`, `constant`."""
    inputs: tuple[int, ...]
    scope: str
    """The name stack: modules of Linen and NNX, `jax.named_scope` of others."""
    line: str
    """`file.py:line` of the user's code, empty if there is none."""
    name: str = ""
    """The path of a leaf or input."""


@dataclasses.dataclass(frozen=True)
class Step:
    """One operation on the tape."""

    function: Callable[..., Any]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@dataclasses.dataclass
class Tape:
    """The places in order of execution, their values and the operations between them."""

    places: list[Place] = dataclasses.field(default_factory=list)
    values: list[Any] = dataclasses.field(default_factory=list)
    steps: list[Step] = dataclasses.field(default_factory=list)
    outputs: list[int] = dataclasses.field(default_factory=list)
    opaque: set[str] = dataclasses.field(default_factory=set)
    """Operations that could not be looked into."""
    pins: dict[int, str] = dataclasses.field(default_factory=dict)
    """Places where the code asks for a narrower type than it is given, and that type."""

    def replay(
        self,
        replaced: Mapping[int, Any],
        seen: Mapping[tuple[int, int], Any] = _NOTHING,
        last: int | None = None,
    ) -> dict[int, Any]:
        """The values that change when the given places hold other values, by place.

        Args:
            replaced: other values by place.
            seen: other values by place and by the one place that is recomputed from it.
            last: the place at which to stop; by default the end.
        """
        changed: dict[int, Any] = {
            index: np.asarray(value, self.values[index].dtype) for index, value in replaced.items()
        }
        users = {user for _, user in seen}
        for step in self.steps:
            user = step.outputs[0]
            if last is not None and user > last:
                break
            if user in users or any(index in changed for index in step.inputs):
                operands = [
                    seen[index, user]
                    if (index, user) in seen
                    else changed.get(index, self.values[index])
                    for index in step.inputs
                ]
                for index, value in zip(step.outputs, step.function(*operands), strict=True):
                    if index not in replaced:
                        changed[index] = value
        return changed

    def descendants(self, places: Iterable[int]) -> set[int]:
        """What is computed from these places, and they themselves."""
        found = set(places)
        for place in self.places:
            if any(source in found for source in place.inputs):
                found.add(place.index)
        return found

    def moved_leaves(self) -> set[int]:
        """Leaves and constants, and places that hold their numbers, only moved."""
        found: set[int] = set()
        for place in self.places:
            if place.primitive in ("leaf", "constant") or (
                place.primitive in _MOVES and set(place.inputs) <= found
            ):
                found.add(place.index)
        return found

    def ancestors(self, places: Sequence[int], until: Set[int] = frozenset()) -> set[int]:
        """What these places are computed from, not looking behind those in `until`."""
        found: set[int] = set()
        pending = list(places)
        while pending:
            index = pending.pop()
            for source in self.places[index].inputs:
                if source not in found:
                    found.add(source)
                    if source not in until:
                        pending.append(source)
        return found
