"""How the output of a product is divided, and how what it is given was flattened.

A fused projection is split by the parts that the code takes of its output, in the order in which it
takes them: thirds, heads, groups. A layer behind a feature map that one side has channels first and
the other channels last reads the same numbers in another order, and so does one whose output
becomes such a map.
"""

import itertools
from collections.abc import Iterable
from typing import Any

import numpy as np

from jaxformer.porting.carry.leaves import ELEMENTWISE, MOVES, LeafUses
from jaxformer.porting.carry.tensors import PRODUCTS, TensorUses
from jaxformer.porting.carry.weight import Weight
from jaxformer.porting.interpreter import parameters_of
from jaxformer.porting.layouts import arrangements
from jaxformer.porting.recorder import LAYOUT_OPERATIONS, Recording
from jaxformer.porting.tape import Tape

_FLAT = LAYOUT_OPERATIONS - {"cat", "concat", "stack", "chunk", "split", "__getitem__", "unbind"}
CASTS = ("convert_element_type", "reduce_precision")
_COMPARISONS = "max min select_n gt lt ge le eq ne and or not clamp is_finite"
SAME = ELEMENTWISE | frozenset(_COMPARISONS.split())
"""Operations whose output has a number for each number of an operand."""
_SMOOTH = "relu gelu silu tanh sigmoid elu leaky_relu mish softplus add"
_ACTIVATIONS = frozenset(_SMOOTH.split())


class Parts:
    """The parts of outputs, and the orders of flattened maps, on both sides."""

    def __init__(self, tape: Tape, recording: Recording, leaves: LeafUses, tensors: TensorUses):
        self.tape, self.recording, self.leaves, self.tensors = tape, recording, leaves, tensors
        self.steps = {step.outputs[0]: step for step in tape.steps}
        self.users = recording.users()

    def of_tensor(self, weight: Weight) -> list[np.ndarray]:
        """The rows of each part that PyTorch takes of a matrix's output."""
        if id(weight) not in self.tensors.uses:
            return []
        values, base = self.recording.values, self.tensors.uses[id(weight)]
        array = values[base].array
        if array.shape[-1] != weight.ids.shape[0]:
            return []
        columns = np.broadcast_to(np.arange(array.shape[-1]), array.shape)
        marks, pending = {base: columns}, [base]
        while pending:
            index = pending.pop(0)
            for user in self.users[index]:
                value = values[user]
                if user not in marks and value.function in LAYOUT_OPERATIONS:
                    found = sought(values[index].array, marks[index], value.array)
                    if found is not None:
                        marks[user] = found
                        pending.append(user)
        return divisions(marks[i] for i in sorted(marks))

    def of_leaf(self, weight: Weight) -> list[np.ndarray]:
        """The rows of each part that the port takes of a matrix's output."""
        marks = self.columns(weight)
        return [] if marks is None else divisions(marks[i] for i in sorted(marks))

    def columns(self, weight: Weight, through: bool = False) -> dict[int, np.ndarray] | None:
        """Which rows of a matrix the numbers come from, at every place they are moved to."""
        place = self.leaves.outputs.get(id(weight))
        if place is None or weight.kind != "matrix":
            return None
        size, rows = np.size(self.tape.values[place]), weight.ids.shape[0]
        first = self.steps[place].inputs[0] in self.leaves.ids
        flat = np.arange(size) // (size // rows) if first else np.arange(size) % rows
        return self.push(place, flat.reshape(np.shape(self.tape.values[place])), through)

    def push(self, place: int, marks: np.ndarray, through: bool = False) -> dict[int, np.ndarray]:
        """Marks at a place and at all to which they are moved; a bias may be added on the way.

        Args:
            place: on the tape.
            marks: of its shape.
            through: also through operations number by number of one operand.
        """
        found = {place: marks}
        for step in self.tape.steps:
            active = [i for i in step.inputs if i in self.leaves.active]
            if place < step.outputs[0] and active and all(i in found for i in active):
                name = self.tape.places[step.outputs[0]].primitive
                made = self.pushed(step, name, found, found[active[0]], through)
                found.update(zip(step.outputs, made, strict=False))
        return found

    def pushed(
        self, step: Any, name: str, found: dict[int, np.ndarray], marks: np.ndarray, through: bool
    ) -> list[np.ndarray]:
        """The marks of an operation's outputs; none if it does more than to move them."""
        same = np.shape(self.tape.values[step.outputs[0]]) == marks.shape
        if same and (name == "add" or name in CASTS or (through and name in SAME)):
            return [marks]
        if name not in MOVES or step.inputs[0] not in found:
            return []
        operands = [
            found[i].astype(float) if i in found else self.tape.values[i] for i in step.inputs
        ]
        return [np.asarray(array).astype(int) for array in step.function(*operands)]

    def moved(self, mine: Weight, theirs: Weight, form: np.ndarray) -> np.ndarray:
        """The tensor's positions in the orders of the port's input and output."""
        if mine.kind == "bias" and mine.added_to is not None and theirs.added_to is not None:
            rows = self.output_order(mine.added_to, theirs.added_to)
            return form if rows is None or len(rows) != len(form) else form[rows]
        if mine.kind != "matrix" or theirs.kind != "matrix":
            return form
        columns, rows = self.input_order(mine, theirs), self.output_order(mine, theirs)
        form = form if columns is None else form[:, columns]
        return form if rows is None else form[rows]

    def input_order(self, mine: Weight, theirs: Weight) -> np.ndarray | None:
        """For each input of the port's matrix that of the original's; None if they are the same."""
        values = self.recording.values
        step = self.steps.get(self.leaves.outputs.get(id(mine), -1))
        if step is None or theirs.source < 0 or len(step.inputs) != 2:
            return None
        given = values[theirs.source].array
        root = theirs.source
        while values[root].function in _FLAT and values[root].inputs:
            root = values[root].inputs[0]
        wide = values[root]
        attends = wide.function in PRODUCTS or "attention" in wide.function
        if attends or wide.array.ndim < 3 or given.shape[-1] != mine.ids.shape[1]:
            return None
        position = int(step.inputs[1] not in self.leaves.ids)
        start = self.leaves.root(step.inputs[position])
        axes = parameters_of(step)["dimension_numbers"][0][position]
        marks = self.push_to(start, step.inputs[position])
        layout = exactly(wide.array, given)
        turned = as_other(wide.array.shape, np.shape(self.tape.values[start]))
        if marks is None or layout is None or turned is None:
            return None
        rest = [a for a in range(marks.ndim) if a not in axes]
        own = marks.transpose((*rest, *sorted(axes))).reshape(-1, mine.ids.shape[1])[0]
        theirs_at = layout.apply(np.arange(wide.array.size).reshape(wide.array.shape))
        back = np.argsort(theirs_at.ravel())
        flat = np.arange(wide.array.size).reshape(wide.array.shape).transpose(turned).ravel()
        return back[flat[own]] % given.shape[-1]

    def push_to(self, start: int, end: int) -> np.ndarray | None:
        """The positions of a place's numbers where they have been moved to."""
        shape = np.shape(self.tape.values[start])
        return self.push(start, np.arange(int(np.prod(shape))).reshape(shape)).get(end)

    def output_order(self, mine: Weight, theirs: Weight) -> np.ndarray | None:
        """For each output of the port's matrix that of the original's; None if the same."""
        values, base = self.recording.values, self.tensors.uses.get(id(theirs))
        marks = self.columns(mine, through=True)
        if base is None or not marks or values[base].array.ndim != 2:
            return None
        flat, last = base, base
        while len(self.users[last]) == 1:
            (user,) = self.users[last]
            if values[user].function in _FLAT:
                last = user
            elif values[user].function in _ACTIVATIONS and last == flat:
                flat = last = user
            else:
                break
        wide = values[last].array
        layout = exactly(values[flat].array, wide)
        ends = [m for m in marks.values() if m.ndim > 2 and m.size == wide.size]
        if layout is None or not ends or wide.ndim < 3:
            return None
        turned = as_other(wide.shape, ends[-1].shape)
        if turned is None:
            return None
        rows = np.broadcast_to(np.arange(mine.ids.shape[0]), values[flat].array.shape)
        theirs_at = layout.apply(rows).transpose(turned)
        order = np.zeros(mine.ids.shape[0], int)
        order[ends[-1].ravel()] = theirs_at.ravel()
        return order


def as_other(shape: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, ...] | None:
    """The axes that turn channels first into channels last, or the reverse; None if neither."""
    if shape == other or len(shape) != len(other):
        return None
    rank = len(shape)
    last = (0, *range(2, rank), 1)
    first = (0, rank - 1, *range(1, rank - 1))
    rest = (axes for axes in itertools.permutations(range(rank)) if axes[0] == 0)
    for axes in (last, first, *rest):
        if tuple(shape[a] for a in axes) == other:
            return axes
    return None


def exactly(array: np.ndarray, other: np.ndarray) -> Any:
    """The layout in which one array is the other; None if it is not."""
    layouts = arrangements(array.shape, other.shape).layouts
    return next((x for x in layouts if np.array_equal(x.apply(array), other)), None)


def sought(array: np.ndarray, marks: np.ndarray, part: np.ndarray) -> np.ndarray | None:
    """The marks of the numbers of a part; None if there are others in it."""
    order = np.argsort(array, axis=None, kind="stable")
    numbers = array.ravel()[order]
    at = np.searchsorted(numbers, part.ravel()).clip(0, numbers.size - 1)
    if (numbers[at] != part.ravel()).any():
        return None
    return marks.ravel()[order[at]].reshape(part.shape)


def divisions(marks: Iterable[np.ndarray]) -> list[np.ndarray]:
    """The rows of the parts, in order of execution; none if they do not make up the whole."""
    found: list[np.ndarray] = []
    whole: np.ndarray | None = None
    for array in marks:
        rows = np.unique(array)
        whole = rows if whole is None else whole
        new = len(rows) < len(whole) and not any(np.isin(rows, other).any() for other in found)
        if new:
            found.append(rows)
    size = sum(map(len, found))
    return found if whole is not None and size == len(whole) else []
