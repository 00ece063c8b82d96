"""Gradients of both sides, once their values agree: what a forward pass cannot show.

The scalar is the sum of the outputs times numbers drawn from a seed. The port's gradient is traced
like its values, with its custom rules, and evaluated in float64. Each tensor of the original is
compared with the leaves that hold its numbers: a tied one with one leaf, whose gradient is the sum.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from jaxformer.porting.compare import ZERO_GRADIENT
from jaxformer.porting.healing import Search
from jaxformer.porting.interpreter import Place, record
from jaxformer.porting.layouts import Layout, distance, nearest
from jaxformer.porting.pairing import Print
from jaxformer.porting.recorder import Value
from jaxformer.porting.report import Fault

TRUE_ZERO = 1e-9
"""A gradient below this share of the largest one is rounding: a key bias has none."""


@dataclasses.dataclass(frozen=True)
class Part:
    """A leaf of the port, or a row of one, that holds a tensor of the original in a layout."""

    leaf: str
    row: int | None
    layout: Layout

    def of(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """Its numbers in a dict of leaves."""
        return arrays[self.leaf] if self.row is None else arrays[self.leaf][self.row]


class Gradients:
    """The gradients of all parameters of both sides."""

    def __init__(self, function: Any, leaves: Mapping[str, Any], inputs: Any, search: Search):
        self.search = search
        self.values = search.recording.values
        rng = np.random.default_rng(0)
        self.weights = []
        for pair in search.outputs:
            array = self.values[pair.torch].array
            weights = rng.standard_normal(array.shape) / np.sqrt(max(array.size, 1))
            self.weights.append(weights if array.dtype.kind == "f" else None)
        self.compared = 0
        """Tensors whose gradient was compared."""
        self.mine = self.jax_gradients(function, leaves, inputs)
        self.theirs = self.torch_gradients()

    def jax_gradients(self, function: Any, leaves: Any, inputs: Any) -> dict[str, np.ndarray]:
        """The gradient of each floating point leaf."""
        names = [name for name in sorted(leaves) if _is_float(leaves[name])]
        outputs = list(self.search.tape.outputs)
        numbers = [outputs.index(pair.jax) for pair in self.search.outputs]

        def scalar(floats: list[Any], rest: Mapping[str, Any], given: Any) -> Any:
            out = function({**rest, **dict(zip(names, floats, strict=True))}, given)
            total: Any = 0.0
            for number, pair, weights in zip(
                numbers, self.search.outputs, self.weights, strict=True
            ):
                if weights is not None:
                    total += jnp.sum(out[number] * pair.layout.apply(weights))
            return total

        def gradient(values: Mapping[str, Any], given: Any) -> list[Any]:
            return jax.grad(scalar)([values[name] for name in names], values, given)

        tape = record(gradient, leaves, inputs)
        return {
            name: np.asarray(tape.values[place], np.float64)
            for name, place in zip(names, tape.outputs, strict=True)
        }

    def torch_gradients(self) -> dict[int, np.ndarray]:
        """The gradient of each parameter by its number in the recording; zeros if it has none."""
        pairs = [
            (self.values[pair.torch].tensor, torch.from_numpy(weights))
            for pair, weights in zip(self.search.outputs, self.weights, strict=True)
            if weights is not None
        ]
        used = [(t, w) for t, w in pairs if t is not None and t.requires_grad]
        params = [v for v in self.values if v.function == "parameter" and v.tensor is not None]
        params = [v for v in params if v.tensor is not None and v.tensor.requires_grad]
        if not used or not params:
            return {}
        found = torch.autograd.grad(
            [t for t, _ in used],
            [v.tensor for v in params if v.tensor is not None],
            [w for _, w in used],
            allow_unused=True,
        )
        return {
            v.index: np.zeros_like(v.array) if g is None else g.detach().numpy()
            for v, g in zip(params, found, strict=True)
        }

    def parts(self, value: Value) -> list[Part]:
        """The leaves that hold a tensor."""
        mark = self.search.theirs[value.index]
        found = []
        for place in self.search.tape.places:
            if place.primitive != "leaf" or place.name not in self.mine or mark is None:
                continue
            array = np.asarray(self.search.tape.values[place.index])
            if array.size == mark.size:
                rows: list[tuple[int | None, np.ndarray]] = [(None, array)]
            elif array.ndim and array.shape[0] and array.size // array.shape[0] == mark.size:
                rows = list(enumerate(array))
            else:
                continue
            for row, numbers in rows:
                other = Print.of(numbers)
                if other is not None and other.same(mark, self.search.bound):
                    layout = _layout(mark.array, other.array, self.search.bound)
                    if layout is not None:
                        found.append(Part(place.name, row, layout))
        return found

    def faults(self, bound: float) -> Iterator[Fault]:
        """The place where the gradient goes wrong."""
        largest = max((float(np.linalg.norm(g)) for g in self.theirs.values()), default=0.0)
        wrong: list[tuple[int, Value, float, list[Part]]] = []
        for number, theirs in self.theirs.items():
            value, size = self.values[number], float(np.linalg.norm(theirs))
            parts = self.parts(value)
            self.compared += bool(parts)
            if not parts:
                continue
            errors = [distance(p.of(self.mine), p.layout.apply(theirs)) for p in parts]
            noise = size <= TRUE_ZERO * largest or value.name.endswith(ZERO_GRADIENT)
            if noise:
                errors = [float(np.linalg.norm(p.of(self.mine))) / (largest or 1) for p in parts]
            if min(errors) > bound:
                last = max((user for user in self.search.users[number]), default=number)
                wrong.append((last, value, min(errors), parts))
        if not wrong:
            return
        last, value, error, parts = max(wrong, key=lambda item: item[0])
        tied = [item for item in wrong if len(item[3]) > 1]
        if tied:
            last, value, error, parts = tied[0]
            yield self.fault(
                last, "untied-head", error, bound,
                f"{value.name} is one tensor, of which the port has {len(parts)} copies: "
                f"{', '.join(part.leaf for part in parts)}",
            )  # fmt: skip
            return
        stop = self.stopped()
        if stop is not None:
            place, number = stop
            yield self.fault(
                number, "stopped-gradient", error, bound,
                f"stop_gradient in {place.line}; the gradient of {len(wrong)} parameters is wrong",
                place,
            )  # fmt: skip
            return
        yield self.fault(
            last, None, error, bound,
            f"the values agree, and the gradient of {value.name} and {len(wrong) - 1} more "
            "parameters is wrong",
        )  # fmt: skip

    def stopped(self) -> tuple[Place, int] | None:
        """A stop_gradient of the port, and the PyTorch value that is made behind it."""
        tape, search = self.search.tape, self.search
        by_place = {place: number for number, places in search.held.items() for place in places}
        for place in tape.places[::-1]:
            if place.primitive != "stop_gradient" or place.index not in search.live:
                continue
            sources = tape.ancestors([place.index], until=search.taken)
            if any(tape.places[i].primitive in ("reduce_max", "argmax") for i in sources):
                continue  # the maximum that softmax subtracts
            pending = [place.index]
            while pending:
                index = pending.pop(0)
                if index in by_place:
                    return place, by_place[index]
                pending += [user for user in search.users_of[index] if user in search.live]
        return None

    def fault(
        self, number: int, word: str | None, error: float, bound: float, evidence: str,
        place: Place | None = None,
    ) -> Fault:  # fmt: skip
        """A fault at a PyTorch value."""
        value = self.values[number]
        line = place.line if place else ""
        return Fault(
            value.owner, line or None, "param_grad", error, bound, word, evidence, value.line, line
        )


def _layout(theirs: np.ndarray, mine: np.ndarray, bound: float) -> Layout | None:
    for _, layout in nearest(theirs, mine):
        if distance(mine, layout.apply(theirs)) <= bound:
            return layout
    return None


def _is_float(value: Any) -> bool:
    return hasattr(value, "dtype") and jnp.issubdtype(value.dtype, jnp.floating)
