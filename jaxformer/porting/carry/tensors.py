"""The weights of an original: which operation first reads each parameter and buffer, and how."""

import re
from collections.abc import Mapping

import numpy as np

from jaxformer.porting.carry.weight import Weight, unbroadcast
from jaxformer.porting.layouts import arrangements
from jaxformer.porting.recorder import LAYOUT_OPERATIONS, Recording, Value

CONVOLUTIONS = ("conv1d", "conv2d", "conv3d")
TRANSPOSED = ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
PRODUCTS = ("matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "addmm", "einsum")
GAINS = ("mul", "__mul__", "__rmul__", "mul_", "__imul__")
SUMS = ("add", "__add__", "__radd__", "add_", "__iadd__")
RECURRENT = ("lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell", "rnn_tanh_cell")
_ELEMENTWISE = "exp log neg __neg__ sigmoid tanh softplus sqrt rsqrt abs clamp"
ELEMENTWISE = frozenset(_ELEMENTWISE.split())
WORDS = {
    "weight": "gain",
    "bias": "bias",
    "running_mean": "mean",
    "running_var": "variance",
}
"""The kind of a vector of a normalisation by its name."""
STEADY = {"variance": 1, "mean": 0, "gain": 2, "bias": 3}
"""The order in which a normalisation uses its vectors."""
MOST_BEFORE = 3


class TensorUses:
    """Positions of the tensors, pushed through the values as far as they are only moved."""

    def __init__(self, recording: Recording):
        self.recording = recording
        self.names: list[str] = []
        self.starts: dict[str, int] = {}
        self.arrays: dict[str, np.ndarray] = {}
        self.ids: dict[int, np.ndarray] = {}
        self.size = 0
        for value in recording.values:
            known = value.function in ("parameter", "buffer")
            if known and value.array.dtype.kind == "f" and value.array.size:
                self.names.append(value.name)
                self.starts[value.name], self.arrays[value.name] = self.size, value.array
                ids = np.arange(self.size, self.size + value.array.size)
                self.ids[value.index] = ids.reshape(value.array.shape)
                self.size += value.array.size
        self.numbers = np.concatenate(
            [self.arrays[name].ravel() for name in self.names] or [np.zeros(0)]
        )
        self.fronts: dict[int, tuple[Weight, ...]] = {}
        self.weights: list[Weight] = []
        self.seen = np.zeros(self.size, bool)
        self.uses: dict[int, int] = {}
        for value in recording.values:
            if value.inputs:
                self.visit(value)

    def visit(self, value: Value) -> None:
        """Push the positions through one operation, or note that it uses them."""
        used = [i for i in value.inputs if i in self.ids]
        if len(used) == 1 and not value.active:
            moved = self.moved(value, used[0])
            if moved is not None:
                self.ids[value.index] = moved
                return
        found = {id(w): w for i in value.inputs for w in self.fronts.get(i, ())}
        front = tuple(sorted(found.values(), key=lambda w: w.order)[-MOST_BEFORE:])
        made = [weight for index in used for weight in self.use(value, index)]
        for weight in made:
            if weight.kind == "bias":
                weight.added_to = self.receiver(value, weight, made)
        made.sort(key=lambda w: STEADY.get(w.kind, 0))
        front = chained(made, front, value.function in RECURRENT)
        self.weights += made
        self.fronts[value.index] = front

    def moved(self, value: Value, index: int) -> np.ndarray | None:
        """The positions in a value that is only moved, or changed number by number."""
        ids, array = self.ids[index], value.array
        source = self.recording.values[index].array
        if value.function in LAYOUT_OPERATIONS:
            if value.function in ("t", "T", "mT", "__get__") and ids.ndim > 1:
                turned = ids.swapaxes(-1, -2)
                if turned.shape == array.shape and np.array_equal(source.swapaxes(-1, -2), array):
                    return turned
            if array.size == ids.size:
                layouts = arrangements(ids.shape, array.shape).layouts
                right = [x for x in layouts if np.array_equal(x.apply(source), array)]
                return right[0].apply(ids) if right else None
            return looked_up(source, ids, array)
        steady = value.function in (*ELEMENTWISE, *GAINS, *SUMS, "sub", "rsub", "div", "pow")
        return ids if steady and array.shape == ids.shape else None

    def use(self, value: Value, index: int) -> list[Weight]:
        """The weight that an operation reads; none if it is known already."""
        ids = self.ids[index] if self.ids[index].ndim < 2 else unbroadcast(self.ids[index])
        gathered = np.unique(ids).size < ids.size
        ids = self.whole(ids) if gathered else ids
        if self.seen[ids.ravel()].any():
            return []
        self.seen[ids.ravel()] = True
        position, others = value.inputs.index(index), [i for i in value.inputs if i != index]
        name, function = self.name_of(ids), value.function
        kind, form = "other", np.squeeze(ids)
        if function == "linear" and ids.ndim == 2:
            kind, form = "matrix", ids
        elif function in PRODUCTS and ids.ndim == 2 and function != "einsum":
            kind, form = "matrix", ids if position == 0 else ids.T
        elif function in CONVOLUTIONS and ids.ndim > 2:
            kind, form = "kernel", ids
        elif function in TRANSPOSED and ids.ndim > 2:
            kind = "kernel"
            form = np.flip(ids.swapaxes(0, 1), tuple(range(2, ids.ndim)))
        elif function == "embedding" or gathered:
            kind, form = "table", ids
        elif function in RECURRENT:
            kind, form = ("matrix" if ids.ndim == 2 else "bias"), ids
        elif np.squeeze(ids).ndim <= 1:
            kind = self.vector(function, name)
        weight = Weight(name, form, kind, value.index)
        if kind in ("matrix", "kernel"):
            weight.source = next((i for i in others if i not in self.ids), -1)
            self.uses[id(weight)] = value.index
        return [weight]

    def vector(self, function: str, name: str) -> str:
        """The kind of a vector by what reads it, or by its name in a normalisation."""
        if function in GAINS:
            return "gain"
        if function in (*SUMS, "linear", *CONVOLUTIONS, *TRANSPOSED, "addmm"):
            return "bias"
        return WORDS.get(name.rpartition(".")[2], "other") if "norm" in function else "other"

    def receiver(self, value: Value, bias: Weight, together: list[Weight]) -> Weight | None:
        """The matrix or kernel whose output a bias is added to."""
        size = bias.ids.size
        if value.function in RECURRENT:
            wanted = bias.name.replace("bias", "weight")
            return next((w for w in together if w.name == wanted), None)
        near = [w for w in together if w.kind in ("matrix", "kernel")]
        if not near and value.function in SUMS:
            near = [w for i in value.inputs for w in self.moved_from(i)]
        return next((w for w in near if w.ids.shape[0] == size), None)

    def moved_from(self, index: int) -> list[Weight]:
        """The matrices and kernels whose output a value is, moved at most."""
        value = self.recording.values[index]
        while value.function in LAYOUT_OPERATIONS and value.inputs:
            value = self.recording.values[value.inputs[0]]
        return [w for w in self.fronts.get(value.index, ()) if self.uses.get(id(w)) == value.index]

    def name_of(self, ids: np.ndarray) -> str:
        """The tensor of some positions, with the row of a part."""
        first = int(ids.ravel()[0])
        name = [name for name in self.names if self.starts[name] <= first][-1]
        count = self.arrays[name].size
        return name if ids.size == count else f"{name}.{(first - self.starts[name]) // ids.size}"

    def whole(self, ids: np.ndarray) -> np.ndarray:
        """All positions of the tensor of some."""
        first = int(ids.ravel()[0])
        return self.tensor_ids([n for n in self.names if self.starts[n] <= first][-1])

    def tensor_ids(self, name: str) -> np.ndarray:
        """All positions of a tensor, in its own shape."""
        array = self.arrays[name]
        start = self.starts[name]
        return np.arange(start, start + array.size).reshape(array.shape)

    def by_tensor(self) -> Mapping[str, list[Weight]]:
        """The weights of each tensor."""
        found: dict[str, list[Weight]] = {name: [] for name in self.names}
        starts = np.array([self.starts[name] for name in self.names])
        for weight in self.weights:
            numbers = np.searchsorted(starts, weight.ids.ravel(), "right") - 1
            for number in np.unique(numbers):
                found[self.names[number]].append(weight)
        return found


def chained(made: list[Weight], front: tuple[Weight, ...], recurrent: bool) -> tuple[Weight, ...]:
    """Let the weights of one operation follow each other; what follows on the last of them.

    Those of a recurrent layer do so in each direction by itself.
    """
    ways: dict[str, list[Weight]] = {}
    for weight in made:
        way = re.sub(r".*(_l\d+)", r"\1", weight.name) if recurrent else ""
        ways.setdefault(way, []).append(weight)
    before, ends = front, list(front)
    for way, several in ways.items():
        if way.endswith("_reverse"):
            last = before
        else:
            before = last = tuple(ends[-MOST_BEFORE:])
            ends = []
        for weight in several:
            weight.before = last
            last = (weight,) if weight is several[0] else (*last, weight)[-MOST_BEFORE:]
        ends += [several[-1]]
    return tuple(ends[-MOST_BEFORE:]) if made else front


def looked_up(source: np.ndarray, ids: np.ndarray, part: np.ndarray) -> np.ndarray | None:
    """The positions in a part, found by its numbers; None where several are equal."""
    order = np.argsort(source, axis=None, kind="stable")
    numbers = source.ravel()[order]
    at = np.searchsorted(numbers, part.ravel())
    if (at >= numbers.size).any() or (numbers[at] != part.ravel()).any():
        return None
    if (np.diff(numbers) == 0).any() and np.squeeze(part).shape != np.squeeze(source).shape:
        return None
    if (np.diff(numbers) == 0).any():
        return ids.reshape(part.shape) if part.size == ids.size else None
    return ids.ravel()[order[at]].reshape(part.shape)
