"""What the code leaves open, by value: of two ways the one after which more values agree.

Two weights of one shape that are used alike, without a word in their names, are told apart by
running the port with either; so is a square array of which no operation says the axes.
"""

import dataclasses
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from jaxformer.porting.carry.leaves import LeafUses
from jaxformer.porting.carry.matching import Alike
from jaxformer.porting.carry.weight import Weight
from jaxformer.porting.pairing import Index, Print
from jaxformer.porting.recorder import Recording
from jaxformer.porting.tape import Tape

BOUND = 1e-9
MOST = 30
"""Ways that are tried, each with a run of the port or two."""
DOUBT = 1.0
"""Two pairs are open if exchanging them loses no more likeness."""
FORMED = ("matrix", "kernel", "table")
"""Kinds of which an operation says the axes."""


@dataclasses.dataclass
class Choice:
    """The pairs, and the axes of those whose form is open."""

    pairs: dict[Weight, Weight]
    axes: dict[Weight, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class Change:
    """Another way, and the same in all layers under one name."""

    name: str
    apply: Callable[[Choice], Choice]


class Trials:
    """Runs of the port with the weights of a choice."""

    def __init__(
        self,
        tape: Tape,
        recording: Recording,
        leaves: LeafUses,
        write: Callable[[Choice], Any],
    ):
        self.tape, self.leaves, self.write = tape, leaves, write
        self.live = tape.ancestors(tape.outputs) | set(tape.outputs)
        active = [value for value in recording.values if value.active and value.inputs]
        self.theirs = [mark for v in active if (mark := Print.of(v.array)) is not None]

    def best(self, choice: Choice, changes: Sequence[Change]) -> Choice:
        """The choice with every change that makes more values agree.

        A layer behind a fault shows nothing: it follows the first of its name.
        """
        groups: dict[str, list[Change]] = {}
        for change in changes:
            groups.setdefault(change.name, []).append(change)
        if not groups:
            return choice
        most = self.agreeing(choice)
        for first, *rest in list(groups.values())[:MOST]:
            if most == len(self.theirs):
                break
            changed = first.apply(choice)
            found = self.agreeing(changed)
            if found <= most:
                continue
            choice, most = changed, found
            for change in rest:
                changed = change.apply(changed)
            found = self.agreeing(changed) if rest else 0
            if found >= most:
                choice, most = changed, found
        return choice

    def agreeing(self, choice: Choice) -> int:
        """How many of PyTorch's values the port has with these weights."""
        carried = self.write(choice).leaves
        replaced = {self.leaves.tape_place(name): value for name, value in carried.items()}
        values = self.tape.replay(replaced)
        index = Index({p: Print.of(v) for p, v in values.items() if p in self.live})
        return sum(bool(index.find(mark, BOUND)) for mark in self.theirs)


def swaps(pairs: dict[Weight, Weight], alike: Alike) -> Iterator[Change]:
    """Exchanges of two pairs that are as likely, the first in order of execution first."""
    bias = {w.added_to: w for w in pairs if w.added_to is not None}
    ordered = sorted(pairs.items(), key=lambda pair: pair[0].order)
    for (a, x), (b, y) in itertools.combinations(ordered, 2):
        if a.signature != b.signature or (a.added_to and b.added_to):
            continue
        now = alike.get((a, x), np.inf) + alike.get((b, y), np.inf)
        if now - alike.get((a, y), -np.inf) - alike.get((b, x), -np.inf) <= DOUBT:
            both = [(a, b)]
            if bias.get(a) and bias.get(b):
                both.append((bias[a], bias[b]))
            yield Change(_starred(a.name, b.name, x.name, y.name), _exchange(both))


def _starred(*names: str) -> str:
    return re.sub(r"\d+", "*", " ".join(names))


def _exchange(both: Sequence[tuple[Weight, Weight]]) -> Callable[[Choice], Choice]:
    def change(choice: Choice) -> Choice:
        pairs = dict(choice.pairs)
        for a, b in both:
            pairs[a], pairs[b] = pairs[b], pairs[a]
        return Choice(pairs, choice.axes)

    return change


def turns(pairs: dict[Weight, Weight]) -> Iterator[Change]:
    """Other orders of the axes, where no operation says which is which."""
    for mine, theirs in pairs.items():
        shapes = np.squeeze(mine.ids).shape, np.squeeze(theirs.ids).shape
        rank = len(shapes[1])
        same = tuple(range(rank))
        if mine.parts or theirs.parts or (mine.kind == theirs.kind and mine.kind in FORMED):
            continue
        if (mine.kind, theirs.kind) == ("matrix", "kernel"):  # patches with the channels last
            ways = [(0, *range(2, rank), 1)] if len(shapes[0]) < rank else []
        else:
            ways = list(orders(*shapes))
            ways.remove(same if same in ways else ways[0]) if ways else None
        for axes in ways:
            if axes != same:
                name = f"{_starred(mine.name, theirs.name)} {axes}"
                yield Change(name, _turn(mine, axes))


def _turn(weight: Weight, axes: tuple[int, ...]) -> Callable[[Choice], Choice]:
    return lambda choice: Choice(choice.pairs, {**choice.axes, weight: axes})


def orders(shape: tuple[int, ...], of: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """The orders of axes that give a shape, the reverse first."""
    rank = len(of)
    if rank == len(shape) <= 5:
        for axes in (tuple(range(rank))[::-1], *itertools.permutations(range(rank))):
            if tuple(of[axis] for axis in axes) == shape:
                yield axes
