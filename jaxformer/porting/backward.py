"""Gradients of both sides, once their values agree: what a forward pass cannot show.

The scalar is the sum of the outputs times numbers drawn from a seed. The port's gradient is traced
like its values, with its custom rules, and evaluated in float64. Each parameter and input of the
original is compared with the arrays of the port that hold its numbers: a tied one with one leaf,
whose gradient is the sum.
"""

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import torch

from jaxformer.porting.compare import ZERO_GRADIENT
from jaxformer.porting.findings import Fault
from jaxformer.porting.healing import Search
from jaxformer.porting.interpreter import record
from jaxformer.porting.layouts import Layout, distance, nearest
from jaxformer.porting.pairing import Print
from jaxformer.porting.recorder import Recording, Value
from jaxformer.porting.tape import Place

TRUE_ZERO = 1e-9
"""A gradient below this share of the largest one is rounding: a key bias has none."""


class NoGradientError(Exception):
    """One side has no gradient: it runs a loop of unknown length, or a kernel without a rule."""


@dataclasses.dataclass(frozen=True)
class Part:
    """An array of the port, or a row of one, that holds a tensor of the original in a layout."""

    place: Place
    row: int | None
    layout: Layout

    def of(self, arrays: Mapping[int, np.ndarray]) -> np.ndarray:
        """Its numbers among those of all places."""
        whole = arrays[self.place.index]
        return whole if self.row is None else whole[self.row]


@dataclasses.dataclass(frozen=True)
class Difference:
    """A tensor of the original whose gradient the port has wrong."""

    value: Value
    last: int
    """The last PyTorch value that is computed from it directly."""
    error: float
    parts: Sequence[Part]


class Gradients:
    """The gradients of all parameters and inputs of both sides.

    Args:
        function: the port, of its leaves and inputs.
        leaves: the port's parameters and other state by path.
        inputs: the arrays that it is called with, by path.
        run: records the original once more, or a copy of it; `keep=True` makes it keep what it
            detaches.
        search: the values of both sides, paired.

    Raises:
        NoGradientError: when one side cannot be differentiated.
    """

    def __init__(
        self,
        function: Callable[..., list],
        leaves: Mapping[str, Any],
        inputs: Mapping[str, Any],
        run: Callable[..., Recording],
        search: Search,
    ):
        self.function, self.leaves, self.inputs, self.run = function, leaves, inputs, run
        self.search = search
        self.values = search.recording.values
        self.named = {value.name: value for value in self.values if value.function == "parameter"}
        rng = np.random.default_rng(0)
        self.weights: list[np.ndarray | None] = []
        for pair in search.outputs:
            array = self.values[pair.torch].array
            weights = rng.standard_normal(array.shape) / np.sqrt(max(array.size, 1))
            self.weights.append(np.asarray(weights) if array.dtype.kind == "f" else None)
        self.compared = 0
        """Tensors whose gradient was compared."""
        self.mine = self.jax_gradients()
        self.theirs = self.torch_gradients()

    def jax_gradients(self) -> dict[int, np.ndarray]:
        """The gradient of each array of the port, by its place."""
        places = [p for p in self.search.tape.places if p.primitive in ("leaf", "input")]
        sides = {"leaf": self.leaves, "input": self.inputs}
        places = [p for p in places if _is_float(sides[p.primitive][p.name])]
        outputs = list(self.search.tape.outputs)
        numbers = [outputs.index(pair.jax) for pair in self.search.outputs]

        def scalar(floats: list[Any], leaves: Mapping[str, Any], inputs: Mapping[str, Any]) -> Any:
            own = {"leaf": dict(leaves), "input": dict(inputs)}
            for place, value in zip(places, floats, strict=True):
                own[place.primitive][place.name] = value
            out = self.function(own["leaf"], own["input"])
            total: Any = 0.0
            for number, pair, weights in zip(
                numbers, self.search.outputs, self.weights, strict=True
            ):
                if weights is not None:
                    total += jnp.sum(out[number] * pair.layout.apply(weights))
            return total

        def gradient(leaves: Mapping[str, Any], inputs: Mapping[str, Any]) -> list[Any]:
            own = {"leaf": leaves, "input": inputs}
            floats = [own[place.primitive][place.name] for place in places]
            return jax.grad(scalar)(floats, leaves, inputs)

        with _refused("the port"):
            self.tape = tape = record(gradient, self.leaves, self.inputs)
        self.outputs = dict(zip(places, tape.outputs, strict=True))
        return {
            place.index: np.asarray(tape.values[found], np.float64)
            for place, found in self.outputs.items()
        }

    def at(self, leaves: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The gradient of each leaf of the port where the leaves hold other values."""
        known = {p.name: p.index for p in self.tape.places if p.primitive == "leaf"}
        changed = self.tape.replay({known[name]: value for name, value in leaves.items()})
        return {
            place.name: np.asarray(changed.get(found, self.tape.values[found]), np.float64)
            for place, found in self.outputs.items()
            if place.primitive == "leaf"
        }

    def torch_gradients(
        self, keep: bool = False, model: torch.nn.Module | None = None
    ) -> dict[int, np.ndarray]:
        """The gradient of each tensor by its number in the recording; zeros if it has none.

        Args:
            keep: what PyTorch detaches is kept.
            model: a copy of the original, with other parameters.
        """
        with _refused("the original"):
            recording = self.run(keep=keep) if model is None else self.run(model, keep=keep)
        paths = {number: path for path, number in self.search.recording.outputs.items()}
        pairs = [
            (recording.values[recording.outputs[paths[pair.torch]]].tensor, torch.tensor(weights))
            for pair, weights in zip(self.search.outputs, self.weights, strict=True)
            if weights is not None
        ]
        used = [(t, w) for t, w in pairs if t is not None and t.requires_grad]
        sources = [
            (value, value.tensor)
            for value in recording.values
            if value.function in ("parameter", "input") and value.tensor is not None
        ]
        sources = [(value, t) for value, t in sources if t.requires_grad and not t._version]
        if not used or not sources:
            return {}
        with _refused("the original"):
            found = torch.autograd.grad(
                [t for t, _ in used],
                [t for _, t in sources],
                [w for _, w in used],
                allow_unused=True,
            )
        return {
            value.index: np.zeros_like(value.array) if g is None else g.detach().numpy()
            for (value, _), g in zip(sources, found, strict=True)
        }

    def parts(self, value: Value) -> list[Part]:
        """The leaves that hold a parameter, or the inputs that hold an input."""
        mark, found = self.search.theirs[value.index], []
        kind = "input" if value.function == "input" else "leaf"
        for place in self.search.tape.places:
            if place.primitive != kind or place.index not in self.mine or mark is None:
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
                        found.append(Part(place, row, layout))
        return found

    def differences(
        self, theirs: Mapping[int, np.ndarray], bound: float, passing: str = ""
    ) -> list[Difference]:
        """The tensors whose gradients differ, if the port's line `passing` stops none."""
        mine = self.mine
        if passing:
            with _passing([], passing):
                mine = self.jax_gradients()
        largest = max((float(np.linalg.norm(g)) for g in theirs.values()), default=0.0)
        found, self.compared = [], 0
        for number, gradient in theirs.items():
            value, size = self.values[number], float(np.linalg.norm(gradient))
            parts = self.parts(value)
            self.compared += bool(parts)
            if not parts:
                continue
            errors = [distance(p.of(mine), p.layout.apply(gradient)) for p in parts]
            if size <= TRUE_ZERO * largest or value.name.endswith(ZERO_GRADIENT):
                errors = [float(np.linalg.norm(p.of(mine))) / (largest or 1) for p in parts]
            if min(errors) > bound:
                last = max(self.search.users[number], default=number)
                found.append(Difference(value, last, min(errors), parts))
        return found

    def faults(self, bound: float) -> Iterator[Fault]:
        """The place where the gradient goes wrong."""
        wrong = self.differences(self.theirs, bound)
        if not wrong:
            return
        for item in wrong:
            if self.is_sum(item, bound):
                copies = ", ".join(part.place.name for part in item.parts)
                yield self.fault(
                    item, item.last, "untied-head", bound,
                    f"{item.value.name} is one tensor, of which the port has {len(item.parts)} "
                    f"copies: {copies}; their gradients add up to the right one",
                )  # fmt: skip
                return
        parameters = [item for item in wrong if item.value.function == "parameter"]
        last = max(parameters or wrong, key=lambda item: item.last)
        names = f"the gradient of {last.value.name or 'an input'}"
        names += f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        detached = self.detached(bound)
        if detached is not None:
            yield self.fault(
                last, detached.index, "stopped-gradient", bound,
                f"{detached.line} stops a gradient that the port lets pass; where it passes in "
                "PyTorch too, all gradients agree",
            )  # fmt: skip
            return
        lines = self.stopping()
        right = [line for line in lines if not self.differences(self.theirs, bound, line)]
        stop = self.stopped(right) if right or not lines else None
        if stop is None:
            yield self.fault(
                last, last.last, None, bound, f"the values agree, and {names} is wrong"
            )
            return
        place, number = stop
        evidence = f"stop_gradient in {place.line}; {names} is wrong"
        evidence += "; without it all gradients agree" if right else ""
        yield self.fault(last, number, "stopped-gradient", bound, evidence, place)

    def is_sum(self, item: Difference, bound: float) -> bool:
        """Whether the gradients of the port's copies of a tensor add up to the right one."""
        if len(item.parts) < 2:
            return False
        theirs = self.theirs[item.value.index]
        total = sum(part.layout.invert(part.of(self.mine), theirs.shape) for part in item.parts)
        return distance(np.asarray(total), theirs) <= bound

    def detached(self, bound: float) -> Value | None:
        """What PyTorch detaches and the port does not, by running PyTorch without it."""
        stops = [value for value in self.values if value.function == "detach"]
        try:
            theirs = self.torch_gradients(keep=True)
        except NoGradientError:
            return None
        if not stops or set(theirs) != set(self.theirs) or self.differences(theirs, bound):
            return None
        return stops[0]

    def stopping(self) -> list[str]:
        """The lines that call `jax.lax.stop_gradient`, as an attribute and not compiled before."""
        found: list[str] = []
        with _passing(found):
            self.jax_gradients()
        return list(dict.fromkeys(found))

    def stopped(self, lines: Sequence[str]) -> tuple[Place, int] | None:
        """A stop_gradient of the port, and the PyTorch value that is made behind it.

        Args:
            lines: if there are any, it is in one of these.
        """
        tape, search = self.search.tape, self.search
        by_place = {
            place: number
            for number, places in search.held.items()
            for place in places
            if self.values[number].active
        }
        for place in tape.places[::-1]:
            if place.primitive != "stop_gradient" or place.index not in search.live:
                continue
            if lines and place.line not in lines:
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
        self, item: Difference, number: int, word: str | None, bound: float, evidence: str,
        place: Place | None = None,
    ) -> Fault:  # fmt: skip
        """A fault at a PyTorch value."""
        value, line = self.values[number], place.line if place else ""
        quantity = "input_grad" if item.value.function == "input" else "param_grad"
        return Fault(
            value.owner, line or None, quantity, item.error, bound, word, evidence, value.line, line
        )


@contextlib.contextmanager
def _passing(found: list[str], line: str = "") -> Iterator[None]:
    """`jax.lax.stop_gradient` tells the line that it is called in, and stops nothing in `line`."""
    original = jax.lax.stop_gradient

    def stop(x: Any) -> Any:
        frame = sys._getframe(1)
        found.append(f"{frame.f_code.co_filename}:{frame.f_lineno}")
        return x if found[-1] == line else original(x)

    with mock.patch.object(jax.lax, "stop_gradient", stop):
        yield


@contextlib.contextmanager
def _refused(side: str) -> Iterator[None]:
    """What a side raises that cannot be differentiated, or cannot be run for a gradient."""
    try:
        yield
    except (RuntimeError, TypeError, ValueError) as error:  # JAX's, PyTorch's, and UserError
        raise NoGradientError(f"{side} raised {type(error).__name__}: {error}"[:200]) from error


def _layout(theirs: np.ndarray, mine: np.ndarray, bound: float) -> Layout | None:
    for _, layout in nearest(theirs, mine):
        if distance(mine, layout.apply(theirs)) <= bound:
            return layout
    return None


def _is_float(value: Any) -> bool:
    return hasattr(value, "dtype") and jnp.issubdtype(value.dtype, jnp.floating)
