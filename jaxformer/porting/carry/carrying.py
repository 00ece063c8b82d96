"""Carry PyTorch's parameters and buffers into the leaves of a port.

Both sides are run once. What reads a weight says what it is and which of its axes is which
(`leaves.py`, `tensors.py`), so that only the pairing is open (`matching.py`): a kernel is
transposed or not by the axis that the port contracts, never by a guess. What one side has as one
and the other as several is joined first (`joining.py`), split by the parts that the code itself
takes of the output (`parts.py`).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxformer.errors import UserError
from jaxformer.porting.carry.joining import (
    join,
    merge_heads,
    split_rows,
    whole_arrays,
)
from jaxformer.porting.carry.leaves import LeafUses
from jaxformer.porting.carry.loaded import loaded
from jaxformer.porting.carry.matching import Alike, match
from jaxformer.porting.carry.parts import Parts
from jaxformer.porting.carry.recurrent import biases, join_cells
from jaxformer.porting.carry.tensors import TensorUses
from jaxformer.porting.carry.trials import Choice, Trials, orders, swaps, turns
from jaxformer.porting.carry.weight import Weight
from jaxformer.porting.recorder import Recording
from jaxformer.porting.sides import JaxSide, TorchSide
from jaxformer.porting.tape import Tape

NO_TENSOR = "no tensor of the original fits"
NOT_READ = "its outputs do not depend on it"


@dataclasses.dataclass
class Carried:
    """The leaves of a port with the original's numbers."""

    leaves: dict[str, np.ndarray]
    """Those that were carried, in part at least."""
    tensors: dict[str, tuple[str, ...]]
    """The names of the tensors in each of them."""
    positions: dict[str, np.ndarray]
    """Where each of their numbers is in all tensors, one after the other; -1 where it is not."""
    left: dict[str, str]
    """The leaves that are as they were, and why."""
    unused: tuple[str, ...]
    """The tensors that no leaf took."""

    def as_json(self) -> dict[str, Any]:
        """The tensors in each leaf, the leaves that are as they were, the tensors left over."""
        return {
            "leaves": {name: list(names) for name, names in self.tensors.items()},
            "left": self.left,
            "unused": list(self.unused),
        }

    def notes(self) -> list[str]:
        """One line for what was carried, and one for each leaf that was not."""
        every = len(self.leaves) + len(self.left)
        found = [f"weights carried from the original into {len(self.leaves)} of {every} leaves"]
        found += [f"not carried: {name}: {why}" for name, why in self.left.items()]
        if self.unused:
            found.append(f"in no leaf of the port: {', '.join(self.unused)}")
        return found


def carried_port(
    port: JaxSide, original: TorchSide, tape: Tape, recording: Recording, asked: bool
) -> tuple[JaxSide, Carried | None]:
    """The port with the original's weights, if that is asked for or nobody loaded any.

    Raises:
        UserError: when it is asked for and one side has no weights.
    """
    if asked and not (port.leaves and original.state()):
        raise UserError("--carry: one side has no weights: leave it out, or return them too")
    if not (original.state() and (asked or not loaded(tape, recording))):
        return port, None
    carried = carry(tape, recording)
    return dataclasses.replace(port, leaves={**port.leaves, **carried.leaves}), carried


def carry(tape: Tape, recording: Recording) -> Carried:
    """The original's numbers in the leaves of the port.

    Args:
        tape: a run of the port with whatever weights.
        recording: a run of the original.
    """
    leaves, tensors = LeafUses(tape), TensorUses(recording)
    mine, theirs = both(leaves, tensors)
    pairs, alike = paired(mine, theirs)
    pairs = biases(pairs, mine, tensors.weights)
    parts = Parts(tape, recording, leaves, tensors)

    def write(choice: Choice) -> Carried:
        return Writing(leaves, tensors, parts, choice.axes).write(choice.pairs)

    trials = Trials(tape, recording, leaves, write)
    return write(trials.best(Choice(pairs, {}), [*swaps(pairs, alike), *turns(pairs)]))


def both(leaves: LeafUses, tensors: TensorUses) -> tuple[list[Weight], list[Weight]]:
    """The weights of both sides, joined where the other side has them as one."""
    own = {name: leaves.leaf_ids(name) for name in leaves.names}
    other = {name: tensors.tensor_ids(name) for name in tensors.names}
    mine = whole_arrays(
        leaves.weights, dict(leaves.by_leaf()), own, [ids.shape for ids in other.values()]
    )
    theirs = whole_arrays(
        tensors.weights, dict(tensors.by_tensor()), other, [ids.shape for ids in own.values()]
    )
    mine = split_rows(merge_heads(mine, theirs), theirs)
    theirs = join_cells(theirs, mine)
    mine = join(mine, theirs)
    return mine, join(theirs, mine)


def paired(mine: Sequence[Weight], theirs: Sequence[Weight]) -> tuple[dict[Weight, Weight], Alike]:
    """The pairs of equal signatures, then those of equal size, then what the original has tied."""
    pairs, alike = match(mine, theirs)
    rest, others = match(mine, theirs, lambda w: ("size", w.ids.size), pairs)
    fitting = {a: b for a, b in rest.items() if arranged(b, a) is not None}
    for weight in mine:
        if weight not in fitting and weight.kind in ("matrix", "table"):
            tied = [w for w in theirs if w.ids.shape == weight.ids.shape and w.kind == "table"]
            fitting.update(zip([weight], tied, strict=False))
    return fitting, others | alike


def arranged(
    theirs: Weight, mine: Weight, axes: tuple[int, ...] | None = None
) -> np.ndarray | None:
    """The tensor's positions in the form of the port's weight; None where they do not fit.

    Args:
        theirs: the original's weight.
        mine: the port's.
        axes: the order of the tensor's axes, where several are possible.
    """
    a, b = np.squeeze(mine.ids), np.squeeze(theirs.ids)
    if axes is not None:
        return b.transpose(axes).reshape(mine.ids.shape)
    if a.shape == b.shape:
        return theirs.ids.reshape(mine.ids.shape)
    if a.size != b.size:
        return None
    for axes in orders(a.shape, b.shape):
        return b.transpose(axes).reshape(mine.ids.shape)
    return theirs.ids.reshape(mine.ids.shape)


class Writing:
    """Writes pairs of weights into the leaves."""

    def __init__(
        self,
        leaves: LeafUses,
        tensors: TensorUses,
        parts: Parts,
        axes: Mapping[Weight, tuple[int, ...]],
    ):
        self.leaves, self.tensors, self.parts, self.axes = leaves, tensors, parts, axes
        self.source = np.full(leaves.size, -1)
        self.plus = np.full(leaves.size, -1)

    def write(self, pairs: dict[Weight, Weight]) -> Carried:
        """Everything that the pairs say."""
        for mine, theirs in pairs.items():
            self.pair(mine, theirs)
        numbers = np.append(self.tensors.numbers, 0.0)
        found, names, positions, left = {}, {}, {}, {}
        for name in self.leaves.names:
            numbered = self.leaves.leaf_ids(name)
            source, place = self.source[numbered], self.leaves.tape_place(name)
            if (source < 0).all():
                used = self.leaves.seen[numbered.ravel()].any()
                left[name] = NO_TENSOR if used else NOT_READ
                continue
            value = np.array(self.leaves.tape.values[place], np.float64)
            value[source >= 0] = (numbers[source] + numbers[self.plus[numbered]])[source >= 0]
            found[name], positions[name] = value, source
            names[name] = tuple(self.named(source))
        taken = np.unique(np.concatenate([self.source, self.plus]))
        every = {name: self.tensors.tensor_ids(name) for name in self.tensors.names}
        rest = tuple(name for name, ids in every.items() if not np.isin(ids, taken).any())
        return Carried(found, names, positions, left, rest)

    def named(self, source: np.ndarray) -> list[str]:
        """The tensors of some positions."""
        starts = np.array([self.tensors.starts[name] for name in self.tensors.names])
        numbers = np.searchsorted(starts, np.unique(source[source >= 0]), "right") - 1
        return [self.tensors.names[i] for i in np.unique(numbers)]

    def pair(self, mine: Weight, theirs: Weight) -> None:
        """One weight of the port, or the parts of one, from one of the original."""
        if mine.parts and not theirs.parts:
            rows = self.parts.of_tensor(theirs.added_to or theirs)
            for part, chosen in zip(mine.parts, divided(mine, rows), strict=True):
                taken = np.take(theirs.ids, chosen, mine.axis)
                columns = self.parts.input_order(part, theirs)
                self.put(part.ids, taken if columns is None else taken[:, columns])
            return
        if theirs.parts and not mine.parts:
            rows = self.parts.of_leaf(mine.added_to or mine)
            for part, chosen in zip(theirs.parts, divided(theirs, rows), strict=True):
                self.put(np.take(mine.ids, chosen, theirs.axis), part.ids)
            return
        form = arranged(theirs, mine, self.axes.get(mine))
        if form is not None:
            self.put(mine.ids, self.parts.moved(mine, theirs, form))
            if theirs.plus is not None:
                self.plus[mine.ids.ravel()] = theirs.plus.ravel()

    def put(self, ids: np.ndarray, numbers: np.ndarray) -> None:
        """Write positions of tensors to positions of leaves."""
        self.source[ids.ravel()] = numbers.ravel()


def divided(whole: Weight, rows: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The rows of each part: as the code divides the output, else one after the other."""
    sizes = [part.ids.shape[whole.axis] for part in whole.parts]
    if whole.axis == 0 and [len(row) for row in rows] == sizes:
        return list(rows)
    return np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])
