"""Where a port departs from its PyTorch original: `divergence` compares two models by value."""

import contextlib
import dataclasses
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jaxformer.errors import UserError
from jaxformer.porting.backward import Gradients, NoGradientError
from jaxformer.porting.carry import carried_port, equal_leaves
from jaxformer.porting.explain import Explainer, Explanation
from jaxformer.porting.factories import user_code
from jaxformer.porting.findings import Fault, Layer, grouped, with_faults
from jaxformer.porting.healing import Location, OutputPair, Search
from jaxformer.porting.interpreter import record
from jaxformer.porting.layers import jax_name, layers_of, line_of
from jaxformer.porting.layouts import Layout, arrangements, distance, nearest
from jaxformer.porting.mapping import chosen_places
from jaxformer.porting.narrowing import narrowed
from jaxformer.porting.recorder import Recording, Value, record_gradients, record_torch
from jaxformer.porting.report import Report
from jaxformer.porting.sides import Inputs, JaxSide, TorchSide, inputs_of, jax_side, torch_side
from jaxformer.porting.steps import Steps, require_optimizers
from jaxformer.porting.tape import Tape

BOUND = 1e-9
"""Of a value in float64, relative: what is within it is paired."""
ROUNDING = 2.5e-7
"""A stretch that errs by less has a constant or a table in float32, on one side alone."""
TABLE_ROUNDING = 5e-6
"""The same where the stretch reads a table, such as the angles of a rotary embedding, whose
rounding grows with the position."""
GRADIENT_BOUND = 1e-7
"""Of a gradient, relative; where the values differ by rounding, thirty times that if it is more."""
MOST_FAULTS = 200


def divergence(
    mine: Any,
    theirs: Any,
    inputs: Any,
    carry: bool = False,
    pairs: Mapping[str, str] | None = None,
    steps: int = 0,
) -> Report:
    """Compare a port with its original, layer by layer, whatever the names and layouts.

    Args:
        mine: an NNX module, (Linen module, variables), (function, params) or a callable pytree.
        theirs: an nn.Module or a function of tensors.
        inputs: a tuple of positional values, a dict of keyword values, or one of these for each
            side under the keys `jax` and `torch`.
        carry: put the original's weights into the port first (`porting/carry/`). That is done
            without being asked where no array of the port is one of the original's.
        pairs: PyTorch modules, each with the module or the line `file.py:42` of the port that makes
            its output; they override the pairing by value.
        steps: steps of the optimizers to compare: `mine` is then (port, optax transformation),
            `theirs` (module, optimizer), and behind it learning rate schedulers.

    Raises:
        UserError: when a side cannot be run.
    """
    port, original, given = jax_side(mine), torch_side(theirs), inputs_of(inputs)
    require_optimizers(port, original, steps)
    with user_code("calling the PyTorch model"), _quiet():
        recording = record_torch(original.model, *given.torch)
        again = record_torch(original.model, *given.torch)

    def recorded(side: JaxSide) -> Tape:
        function, arrays = side.bound(*given.jax)
        with _quiet():
            return record(function, side.leaves, arrays, halves=not original.half)

    tape = recorded(port)
    port, carried = carried_port(port, original, tape, recording, carry)
    tape = recorded(port) if carried else tape
    report = Comparison(port, original, recording, again, tape, given, pairs or {}, steps).report()
    if carried:
        report.carried = carried.as_json()
        report.notes[:0] = carried.notes()
    return report


def assert_port(mine: Any, theirs: Any, inputs: Any, **options: Any) -> None:
    """For a test: the port agrees with its original; the report is the message of the failure.

    The options are those of `divergence`.

    Raises:
        AssertionError: when it departs, or nothing could be compared.
        UserError: when a side cannot be run.
    """
    report = divergence(mine, theirs, inputs, **options)
    if not report.ok:
        raise AssertionError(str(report))


def assert_layer(mine: Any, theirs: Any, inputs: Any, **options: Any) -> None:
    """For a test of one layer: its output agrees, and the gradients of every parameter and input.

    As `assert_port`, and a layer that one side cannot differentiate is refused as well.

    Raises:
        AssertionError: when it departs, or values or gradients could not be compared.
        UserError: when a side cannot be run.
    """
    report = divergence(mine, theirs, inputs, **options)
    if not report.ok or "gradients" not in report.compared:
        raise AssertionError(str(report))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@dataclasses.dataclass
class Comparison:
    """Both sides after one run."""

    port: JaxSide
    original: TorchSide
    recording: Recording
    again: Recording
    """A second run of PyTorch's, which differs if it is random."""
    tape: Tape
    given: Inputs
    pairs: Mapping[str, str]
    """The modules whose places the user names."""
    steps: int
    """Steps of the optimizers."""
    rounded: list[Location] = dataclasses.field(default_factory=list)

    def report(self) -> Report:
        """All faults in order of execution, and what was compared."""
        outputs = pair_outputs(self.recording, self.tape, self.port.output_paths)
        if not outputs:
            return Report(False, [], math.nan, BOUND, {"outputs": 0})
        random = self.random_torch(outputs)
        if random is not None:
            return Report(False, [random], random.error, BOUND, {"outputs": len(outputs)})
        chosen = chosen_places(self.pairs, self.recording, self.tape)
        search = Search(self.tape, self.recording, outputs, BOUND, chosen)
        error = max((search.output_error(pair, {}) for pair in outputs), default=math.inf)
        report = Report(True, [], error, BOUND)
        weights = {}
        if self.port.leaves and self.original.state():
            weights["weights"] = self.equal_weights(search)
        loaded = weights.get("weights") != 0 or error <= BOUND
        report.faults = self.forward_faults(search) if loaded else []
        layers = layers_of(search, self.original.kinds())
        report.compared = {**self.compared(search, layers), **weights}
        if not loaded:
            report.ok = False
            report.notes.append(
                "no array of the port equals a tensor of the original: load its weights first"
            )
            return report
        if not report.faults and error <= TABLE_ROUNDING:
            report.faults = list(self.backward_faults(search, report))
        report.ok = not report.faults and error <= max(BOUND, TABLE_ROUNDING)
        report.layers = with_faults(layers, report.faults)
        report.notes += self.notes(outputs, report)
        return report

    def forward_faults(self, search: Search) -> list[Fault]:
        """The faults that change values.

        Where one mistake explains everything, what it brought with it is left out: a norm at
        another place is also missing at its own.
        """
        explainer = Explainer(self.original, search, self.given.torch)
        found = list(self.located_faults(search, explainer))
        if len(grouped(found)) > 1 or any(fault.cause is None for fault in found):
            cause = explainer.whole()
            if cause is not None:
                named = [fault for fault in found if fault.cause == cause.word]
                return named or [
                    dataclasses.replace(fault, cause=cause.word, evidence=cause.evidence)
                    for fault in found
                ]
        return found

    def located_faults(self, search: Search, explainer: Explainer) -> Iterator[Fault]:
        """Each fault, in order of execution; it is healed before the next is looked for."""
        for _ in range(MOST_FAULTS):
            location = search.next()
            if location is None:
                return
            location = narrowed(search, location)
            explanation = explainer.explain(location)
            small = location.error < self.rounding(location, search)
            if small and (explanation is None or explanation.residual > 1e-3 * location.error):
                self.rounded.append(location)
                explanation = None
            else:
                for owner in (explanation and explanation.owners) or (location.owner,):
                    yield self.fault(dataclasses.replace(location, owner=owner), explanation)
            search.heal(location, explanation.healed if explanation else {})

    def fault(self, location: Location, explanation: Explanation | None) -> Fault:
        """A location with its cause and the lines of both sides."""
        value, place = self.recording.values[location.value], self.tape.places[location.place]
        line = line_of(self.tape, place)
        return Fault(
            torch=location.owner,
            jax=jax_name(place.scope) or line or None,
            quantity="output",
            error=location.error,
            bound=BOUND,
            cause=explanation.word if explanation else None,
            evidence=explanation.evidence if explanation else described(location, value),
            torch_line=value.line,
            jax_line=line,
        )

    def backward_faults(self, search: Search, report: Report) -> Iterator[Fault]:
        """The faults that gradients alone show."""
        function, arrays = self.port.bound(*self.given.jax)

        def run(model: Any = self.original.model, keep: bool = False) -> Recording:
            return record_gradients(model, *self.given.torch, keep=keep)

        try:
            with _quiet():
                gradients = Gradients(function, self.port.leaves, arrays, run, search)
                found = list(gradients.faults(max(GRADIENT_BOUND, 30 * report.error)))
        except NoGradientError as error:
            report.notes.append(f"gradients not compared: {error}")
            return
        report.compared["gradients"] = gradients.compared
        if self.steps and not found:
            with _quiet():
                steps = Steps(gradients, self.port, self.original, self.steps)
                found = list(steps.faults())
            report.compared["steps"] = self.steps
            report.compared["updates"] = len(steps.parts)
            report.compared["all_updates"] = len(gradients.named)
        yield from found

    def rounding(self, location: Location, search: Search) -> float:
        """The error of a stretch that float32 explains."""
        values, places = self.recording.values, self.tape.places
        used = {i for index in location.region for i in values[index].inputs}
        table = any(
            (values[i].function in ("buffer", "constant") and values[i].array.size > 1)
            or (not values[i].active and values[i].inputs and values[i].array.size > 1)
            for i in used
        )
        sources = self.tape.ancestors([location.place], until=search.taken | set(search.healed))
        table = table or any(
            places[i].primitive == "constant" and np.size(self.tape.values[i]) > 1 for i in sources
        )
        return TABLE_ROUNDING if table else ROUNDING

    def random_torch(self, outputs: list[OutputPair]) -> Fault | None:
        """Two runs of the original that differ: its dropout is on."""
        errors = [
            distance(self.again.values[pair.torch].array, self.recording.values[pair.torch].array)
            for pair in outputs
        ]
        if max(errors) <= BOUND:
            return None
        modules = self.original.module.named_modules() if self.original.module else ()
        names = [n for n, m in modules if m.training and getattr(m, "p", 0) and "Drop" in repr(m)]
        return Fault(
            torch=names[0] if names else "",
            jax=None,
            quantity="output",
            error=max(errors),
            bound=BOUND,
            cause="dropout-on",
            evidence="two runs of the PyTorch model differ: return it in eval mode",
        )

    def equal_weights(self, search: Search) -> int:
        """How many leaves of the port hold the numbers of a tensor of the original, or a part."""
        return len(equal_leaves(self.tape, self.recording))

    def compared(self, search: Search, layers: Sequence[Layer]) -> dict[str, int]:
        """How much was compared."""
        active = [v for v in self.recording.values if v.active and v.inputs]
        return {
            "outputs": len(search.outputs),
            "modules": sum(layer.found for layer in layers),
            "all_modules": len(layers),
            "values": sum(v.index in search.held for v in active),
            "all_values": len(active),
        }

    def notes(self, outputs: list[OutputPair], report: Report) -> list[str]:
        """What is no fault and worth knowing."""
        found = [
            f"output {pair.path or 0} is compared in the layout {pair.layout}"
            for pair in outputs
            if not pair.layout.is_identity
        ]
        if self.rounded:
            worst = max(self.rounded, key=lambda location: location.error)
            names = sorted({location.owner or "the model" for location in self.rounded})
            found.append(
                f"float32 on one side: {', '.join(names)}, by {worst.error:.0e} at most, no fault"
            )
        if self.tape.opaque:
            found.append(f"not looked into: {', '.join(sorted(self.tape.opaque))}")
        if self.steps and "steps" not in report.compared:
            found.append("steps not compared: the gradients have to agree first")
        for layer in report.layers if report.ok else ():
            if layer.torch in self.pairs and layer.error > ROUNDING:
                found.append(
                    f"{layer.torch} is paired with {self.pairs[layer.torch]}, which differs by "
                    f"{layer.error:.1e}; the outputs agree"
                )
        return found


def pair_outputs(recording: Recording, tape: Tape, paths: list[str]) -> list[OutputPair]:
    """The results of both sides: by name, else in order, each in one layout.

    Raises:
        UserError: when no output of one side has the size of one of the other.
    """
    values = recording.values
    mine = list(zip(paths, tape.outputs, strict=True))
    left = dict(recording.outputs)
    found = []
    for path, place in mine:
        array = tape.values[place]
        fitting = [name for name, i in left.items() if values[i].array.size == array.size]
        if not fitting:
            continue
        name = path if path in fitting else fitting[0]
        index = left.pop(name)
        theirs = values[index].array
        found.append(OutputPair(name or path, index, place, _layout(theirs, array)))
    if not found:
        shapes = [tape.values[place].shape for _, place in mine]
        others = [values[i].array.shape for i in recording.outputs.values()]
        raise UserError(
            f"no output can be compared: the port's have shapes {shapes}, PyTorch's {others}"
        )
    return found


def _layout(theirs: np.ndarray, mine: np.ndarray) -> Layout:
    if theirs.shape == mine.shape:
        same = arrangements(theirs.shape, mine.shape).layouts[0]
        if theirs.ndim != 4 or distance(mine, theirs) <= BOUND:
            return same
        images = [image for image in _images(theirs) if image.shape == mine.shape]
        right = [x for x in images if distance(mine, x.apply(theirs)) <= BOUND]
        return right[0] if right else same
    best = nearest(theirs, mine, 1)[0][1]
    if theirs.ndim != 4 or distance(mine, best.apply(theirs)) <= BOUND:
        return best
    images = [image for image in _images(theirs) if image.shape == mine.shape]
    return images[0] if images else best


def _images(array: np.ndarray) -> list[Layout]:
    """NCHW as NHWC, and the reverse."""
    orders = ((0, 2, 3, 1), (0, 3, 1, 2))
    return [Layout(array.shape, o, tuple(array.shape[axis] for axis in o)) for o in orders]


def described(location: Location, value: Value) -> str:
    """What is known of a fault without a cause."""
    difference = np.abs(location.port - value.array)
    worst = np.unravel_index(int(np.argmax(difference)), difference.shape)
    share = float(np.mean(difference > 1e-6 * (np.abs(value.array).max() + 1e-30)))
    text = (
        f"{value.function} gives {value.array.shape}, of which {share:.0%} differ, most at "
        f"{tuple(int(i) for i in worst)}"
    )
    if location.leaf:
        text = f"with {location.parameter} {location.way} in {location.leaf} it agrees; {text}"
    if location.wiring:
        text = f"right by itself, but given another value than in PyTorch; {text}"
    return text
