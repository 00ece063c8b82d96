"""The weights of a port: which operation first reads each part of each leaf, and how."""

from collections.abc import Iterable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxformer.porting.carry.weight import VECTORS, Weight, unbroadcast
from jaxformer.porting.interpreter import parameters_of
from jaxformer.porting.tape import Tape

_MOVES = (
    "reshape transpose squeeze expand_dims broadcast_in_dim copy slice stack rev concatenate "
    "dynamic_slice split convert_element_type reduce_precision optimization_barrier"
)
MOVES = frozenset(_MOVES.split())
"""Operations that move numbers and compute none."""
_ELEMENTWISE = (
    "add sub mul div max min pow exp exp2 log log1p expm1 neg sqrt rsqrt square integer_pow "
    "logistic tanh abs sign erf convert_element_type"
)
ELEMENTWISE = frozenset(_ELEMENTWISE.split())
"""Operations number by number."""
ROOTS = frozenset(("sqrt", "rsqrt"))
NEAR = 12
"""Operations that lie at most between a product and its bias."""
MOST_BEFORE = 3
"""Weights that are remembered as those just before: behind a residual there are many."""


class LeafUses:
    """Positions of the leaves, pushed through the tape as far as they are only moved."""

    def __init__(self, tape: Tape):
        self.tape = tape
        self.names: list[str] = []
        self.starts: dict[str, int] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.places: dict[str, int] = {}
        self.ids: dict[int, np.ndarray] = {}
        """Of a place that depends on leaves alone, number by number: the positions there."""
        self.through: dict[int, tuple[str, ...]] = {}
        """The operations that such a place has passed."""
        self.size = 0
        for place in tape.places:
            value = tape.values[place.index]
            if place.primitive == "leaf" and is_float(value) and np.size(value):
                self.names.append(place.name)
                self.starts[place.name] = self.size
                self.places[place.name] = place.index
                self.shapes[place.name] = np.shape(value)
                count = int(np.size(value))
                ids = np.arange(self.size, self.size + count, dtype=np.float64)
                self.ids[place.index] = ids.reshape(np.shape(value))
                self.through[place.index] = ()
                self.size += count
        self.active = tape.descendants(
            place.index for place in tape.places if place.primitive == "input"
        )
        self.fronts: dict[int, tuple[Weight, ...]] = {}
        self.weights: list[Weight] = []
        self.seen = np.zeros(self.size, bool)
        self.outputs: dict[int, int] = {}
        """The place at which each weight is used, by the weight's identity."""
        live = tape.ancestors(tape.outputs) | set(tape.outputs)
        for step in tape.steps:
            if live & set(step.outputs):
                self.visit(step)

    def visit(self, step: Any) -> None:
        """Push the positions through one operation, or note that it uses them."""
        place = self.tape.places[step.outputs[0]]
        used = [i for i in dict.fromkeys(step.inputs) if i in self.ids]
        if used and self.pushed(step, place.primitive, used):
            return
        front = self.front(step.inputs)
        new = []
        for index in used:
            made = self.use(step, place.primitive, index, front)
            new += made
        if new:
            front = tuple(new[-MOST_BEFORE:])
        for output in step.outputs:
            self.fronts[output] = front

    def front(self, inputs: Iterable[int]) -> tuple[Weight, ...]:
        """The last weights on the ways to some places."""
        found = {id(w): w for index in inputs for w in self.fronts.get(index, ())}
        return tuple(sorted(found.values(), key=lambda w: w.order)[-MOST_BEFORE:])

    def pushed(self, step: Any, primitive: str, used: list[int]) -> bool:
        """Whether the operation only moves leaves, or changes them number by number."""
        values = self.tape.values
        if primitive in MOVES:
            alone = primitive not in ("concatenate", "stack") or set(step.inputs) <= set(self.ids)
            if not alone or step.inputs[0] not in self.ids:
                return False
            if primitive in ("convert_element_type", "reduce_precision"):
                made = [self.ids[step.inputs[0]]]
            else:
                made = step.function(*[self.ids.get(i, values[i]) for i in step.inputs])
        elif primitive in ELEMENTWISE and len(used) == 1 and not set(step.inputs) & self.active:
            made = [self.ids[used[0]]]
            if np.shape(made[0]) != np.shape(values[step.outputs[0]]):
                return False
        else:
            return False
        passed = self.through[used[0]] + (() if primitive in MOVES else (primitive,))
        for output, array in zip(step.outputs, made, strict=True):
            self.ids[output], self.through[output] = np.asarray(array), passed
        return True

    def use(self, step: Any, primitive: str, index: int, front: tuple[Weight, ...]) -> list[Weight]:
        """The weight that an operation reads; none if it is known already."""
        ids = unbroadcast(self.ids[index]).astype(int)
        if self.seen[ids.ravel()].any():
            return []
        self.seen[ids.ravel()] = True
        position = step.inputs.index(index)
        others = [i for i in step.inputs if i != index]
        kind, forms = self.form(step, primitive, position, index, ids)
        forms = [array.ravel() for array in forms] if kind in VECTORS else forms
        source = self.root(others[0]) if others and kind in ("matrix", "kernel") else -1
        made = []
        for number, array in enumerate(forms):
            name = self.name_of(array) + (f"[{number}]" if len(forms) > 1 else "")
            weight = Weight(name, array, kind, step.outputs[0], front, source=source)
            if kind == "matrix":
                weight.rows = self.rows(step, position, index)
            if kind == "bias":
                weight.added_to = self.receiver(others, array.size)
            self.outputs[id(weight)] = step.outputs[0]
            made.append(weight)
        self.weights += made
        return made

    def form(
        self, step: Any, primitive: str, position: int, index: int, ids: np.ndarray
    ) -> tuple[str, list[np.ndarray]]:
        """The kind of a use, and the positions in the form of the kind."""
        plain = [np.squeeze(ids)]
        alone = not set(step.inputs) - {index} & self.active
        if primitive == "dot_general" and parameters_of(step)["dimension_numbers"][0][position]:
            numbers = parameters_of(step)["dimension_numbers"]
            return "matrix", matrices(ids, numbers, position)
        if primitive == "conv_general_dilated" and position == 1:
            spec = parameters_of(step)["dimension_numbers"].rhs_spec
            return "kernel", [ids.transpose(spec)]
        if primitive == "gather" and position == 0:
            axes = parameters_of(step)["dimension_numbers"].start_index_map
            return "table", [np.moveaxis(ids, axes[0], 0) if ids.ndim > 1 else ids]
        kind = "other"
        if primitive in ("mul", "div"):
            kind = "variance" if ROOTS & set(self.through[index]) else kind
            kind = "gain" if kind == "other" and plain[0].ndim <= 1 else kind
        elif primitive == "sub" and position == 1 and not alone:
            kind = "mean"
        elif primitive in ("add", "sub") and self.is_bias(step, index, ids):
            kind = "bias"
        return kind, plain

    def rows(self, step: Any, position: int, index: int) -> int:
        """The length of the first axis of a leaf of which a product has several as outputs."""
        contracted, batch = (axes[position] for axes in parameters_of(step)["dimension_numbers"])
        shape = self.ids[index].shape
        free = [n for a, n in enumerate(shape) if a not in contracted and a not in batch]
        return free[0] if len(free) > 1 else 1

    def is_bias(self, step: Any, index: int, ids: np.ndarray) -> bool:
        """Whether a summand has no axis of positions: one of numbers, or heads and numbers."""
        if np.squeeze(ids).ndim <= 1:
            return True
        others = [i for i in step.inputs if i != index]
        return self.receiver(others, ids.size) is not None

    def receiver(self, places: list[int], size: int) -> Weight | None:
        """The matrix or kernel whose output comes to a place, moved at most, or added to."""
        pending = list(places)
        for _ in range(NEAR):
            if not pending:
                break
            index = pending.pop(0)
            for weight in self.fronts.get(index, ()):
                if self.outputs[id(weight)] == index and weight.kind in ("matrix", "kernel"):
                    return weight if weight.ids.shape[0] == size else None
            place = self.tape.places[index]
            if place.primitive in MOVES:
                pending += place.inputs[:1]
            elif place.primitive == "add":
                pending += [i for i in place.inputs if i not in self.ids]
        return None

    def root(self, index: int) -> int:
        """The place that a place is moved from."""
        while self.tape.places[index].primitive in MOVES - {"concatenate", "stack", "slice"}:
            index = self.tape.places[index].inputs[0]
        return index

    def name_of(self, ids: np.ndarray) -> str:
        """The leaf of some positions, with the row of a part."""
        first = int(ids.ravel()[0])
        name = [name for name in self.names if self.starts[name] <= first][-1]
        size = int(np.prod(self.shapes[name], dtype=int))
        rest = (first - self.starts[name]) // max(ids.size, 1)
        return name if ids.size == size else f"{name}.{rest}"

    def leaf_ids(self, name: str) -> np.ndarray:
        """All positions of a leaf, in its own shape."""
        count = int(np.prod(self.shapes[name], dtype=int))
        return np.arange(self.starts[name], self.starts[name] + count).reshape(self.shapes[name])

    def tape_place(self, name: str) -> int:
        """The place of a leaf."""
        return self.places[name]

    def by_leaf(self) -> Mapping[str, list[Weight]]:
        """The weights of each leaf."""
        found: dict[str, list[Weight]] = {name: [] for name in self.names}
        starts = np.array([self.starts[name] for name in self.names])
        for weight in self.weights:
            numbers = np.searchsorted(starts, weight.ids.ravel(), "right") - 1
            for number in np.unique(numbers):
                found[self.names[number]].append(weight)
        return found


def matrices(ids: np.ndarray, numbers: Any, position: int) -> list[np.ndarray]:
    """(O, I) for each index of the batch axes, from the axes that a product contracts."""
    contracted = tuple(sorted(numbers[0][position]))
    batch = tuple(numbers[1][position])
    free = tuple(a for a in range(ids.ndim) if a not in contracted and a not in batch)
    size = [int(np.prod([ids.shape[a] for a in axes], dtype=int)) for axes in (free, contracted)]
    moved = ids.transpose((*batch, *free, *contracted)).reshape(-1, *size)
    return list(moved)


def is_float(value: Any) -> bool:
    """Whether it is an array of floating point numbers."""
    return hasattr(value, "dtype") and jnp.issubdtype(value.dtype, jnp.floating)
