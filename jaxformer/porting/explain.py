"""Why a located stretch is wrong: its weights, its types, its randomness, or a known mistake.

A known mistake is found by planting it in the PyTorch module (`causes`), for which the port's
output of that module is needed, with right inputs and in PyTorch's layout.
"""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxformer.porting.causes import UNFIT, Cause, Context, Inputs, name_cause, name_stretch
from jaxformer.porting.healing import Location, Search
from jaxformer.porting.interpreter import RANDOM
from jaxformer.porting.recorder import Call, flat_tensors
from jaxformer.porting.sides import TorchSide
from jaxformer.porting.tape import Tape

EXACT = 1e-9
"""A mistake that leaves no more than this of all outputs explains everything."""
SHOWING = 1e-3
"""A module's output shows its fault if it differs by this share of the located difference."""
_TOGETHER = (
    ("qkv-order", r"q|k|v|query|key|value|in_proj|qkv|c_attn"),
    ("gate-swap", r"gate|up|w1|w3|wi_0|wi_1|gate_proj|up_proj"),
)
"""Tensors that are taken for one another, and the word for it."""


@dataclasses.dataclass(frozen=True)
class Explanation:
    """The cause of a fault and the evidence, and what to heal if more than the place is known."""

    word: str
    evidence: str
    healed: dict[int, np.ndarray] = dataclasses.field(default_factory=dict)
    residual: float = 0.0
    owners: tuple[str, ...] = ()
    """The modules inside the located one in which the fault is, if that is known."""


class Explainer:
    """Names the causes of the faults of one comparison."""

    def __init__(self, original: TorchSide, search: Search, inputs: tuple[Sequence[Any], dict]):
        self.original, self.search = original, search
        self.named: dict[tuple, tuple[str, str, tuple[str, ...]]] = {}
        pairs = search.outputs
        self.inputs = inputs
        values = search.recording.values
        self.theirs = [values[pair.torch].tensor for pair in pairs]
        self.ports = [
            pair.layout.invert(
                np.asarray(search.tape.values[pair.jax], np.float64), values[pair.torch].array.shape
            )
            for pair in pairs
        ]

    def explain(self, location: Location) -> Explanation | None:
        """The cause of a fault, or None."""
        return (
            self.random(location)
            or self.misplaced(location)
            or self.mistake(location)
            or self.precision(location)
            or self.weights(location)
        )

    def stretch(self, location: Location) -> set[int]:
        """The places of the port between what is right and the located one."""
        known = self.search.taken | set(self.search.healed)
        return self.search.tape.ancestors([location.place], until=known) | {location.place}

    def random(self, location: Location) -> Explanation | None:
        """Random numbers in the stretch: dropout is on."""
        tape = self.search.tape
        if not reaches_random(tape, self.stretch(location), self.search.taken):
            return None
        return Explanation("dropout-on", "the port draws random numbers here: call it in eval mode")

    def misplaced(self, location: Location) -> Explanation | None:
        """A leaf with the right numbers in the wrong order, or with those of another tensor."""
        if not location.leaf:
            return None
        values = self.search.recording.values
        place = next(p for p in self.search.tape.places if p.name == location.leaf)
        mine = self.search.prints[place.index]
        assert mine is not None
        named = [
            (value.name, mark)
            for value, mark in zip(values, self.search.theirs, strict=True)
            if value.function in ("parameter", "buffer") and mark is not None
        ]
        equal = [name for name, mark in named if mark.same(mine, self.search.bound)]
        if location.parameter in equal:
            word = "transposed-kernel" if mine.array.ndim == 2 else "kernel-layout"
            return Explanation(
                word,
                f"{location.leaf} holds {location.parameter} in another layout: with "
                f"{location.way} the output agrees",
            )
        if equal:
            word = "wrong-tensor"
            for candidate, pattern in _TOGETHER:
                both = (equal[0], location.parameter)
                if all(re.search(rf"(^|[._])({pattern})([._]|$)", name) for name in both):
                    word = candidate
            return Explanation(
                word,
                f"{location.leaf} holds {equal[0]}: with {location.parameter} the output agrees",
            )
        return None

    def weights(self, location: Location) -> Explanation | None:
        """A leaf that is no tensor of the original's."""
        if not location.leaf:
            return None
        return Explanation(
            "weights",
            f"{location.leaf} is no tensor of the original: with {location.parameter} the output "
            "agrees",
        )

    def precision(self, location: Location) -> Explanation | None:
        """A cast to half precision in the stretch."""
        tape = self.search.tape
        pinned = {tape.pins[i] for i in self.stretch(location) if i in tape.pins}
        narrow = sorted(pinned & {"float16", "bfloat16"})
        if narrow and location.error < 0.05:
            return Explanation("precision", f"the port casts to {narrow[0]} here")
        return None

    def mistake(self, location: Location) -> Explanation | None:
        """A known mistake that gives the port's output when PyTorch's module makes it."""
        module = self.original.module
        if module is None:
            return None
        call = self.call(location)
        if call is None and location.owner:
            return None
        ports: list[np.ndarray | None]
        if call is None:
            inputs, theirs, ports = self.inputs, self.theirs, [*self.current_outputs()]
            healed: dict[int, np.ndarray] = {}
        else:
            theirs = [tensor for _, tensor in flat_tensors(call.output)]
            ports, healed = self.outputs_of(call, location)
            inputs = (call.args, call.kwargs)
        context = Context(self.inputs, self.theirs, self.ports)
        values = self.search.recording.values
        operations = tuple(values[i].function for i in location.region)
        kind = (re.sub(r"\d+", "*", location.owner), operations)
        if kind in self.named:
            first, word, owners = self.named[kind]
            owners = tuple(location.owner + name.removeprefix(first) for name in owners)
            return Explanation(word, f"the same operations as in {first}", healed, owners=owners)
        try:
            cause = name_cause(
                module, location.owner, inputs, theirs, ports,
                context=context, least=SHOWING * location.error,
            )  # fmt: skip
            if cause is None:
                cause, healed = self.stretched(module, location, inputs), {}
        except UNFIT:  # a module that cannot be recorded
            return None
        if cause is None:
            return None
        owners = tuple(name for name in cause.owners if name.startswith(location.owner))
        owners = () if location.owner in owners else owners
        self.named[kind] = location.owner, cause.word, owners
        return Explanation(cause.word, cause.evidence, healed, cause.residual, owners)

    def stretched(self, module: Any, location: Location, inputs: Inputs) -> Cause | None:
        """A mistake between the values that the port has right and the located one."""
        values = self.search.recording.values
        known = {i for index in location.region for i in values[index].inputs}
        known = {i for i in known if values[i].active and i not in location.region}
        right = [values[i].array for i in sorted(known)]
        for name, given in {location.owner: inputs, "": self.inputs}.items():
            wrong = values[location.value].array
            cause = name_stretch(module, name, given, right, wrong, location.port)
            if cause is not None:
                return cause
        return None

    def whole(self) -> Cause | None:
        """The one mistake that explains all outputs of the model, if there is one."""
        module = self.original.module
        if module is None:
            return None
        try:
            cause = name_cause(module, "", self.inputs, self.theirs, self.ports)
        except UNFIT:  # a module that cannot be recorded
            return None
        return cause if cause is not None and cause.residual <= EXACT else None

    def call(self, location: Location) -> Call | None:
        """The call of the module in which the value was made."""
        for call in self.search.recording.calls[::-1]:
            last = max(call.outputs, default=-1)
            if call.name == location.owner and call.start <= location.value <= last:
                return call
        return None

    def current_outputs(self) -> list[np.ndarray]:
        """The port's outputs with everything healed that was found so far."""
        found = []
        for pair in self.search.outputs:
            mark = self.search.current[pair.jax]
            array = np.asarray(self.search.tape.values[pair.jax]) if mark is None else mark.array
            shape = self.search.recording.values[pair.torch].array.shape
            found.append(pair.layout.invert(array, shape))
        return found

    def outputs_of(
        self, call: Call, location: Location
    ) -> tuple[list[np.ndarray | None], dict[int, np.ndarray]]:
        """The port's outputs of a module in PyTorch's layout, and what would heal them."""
        search, values = self.search, self.search.recording.values
        found: list[np.ndarray | None] = []
        healed: dict[int, np.ndarray] = {}
        for number in call.outputs:
            array, mark = values[number].array, search.theirs[number]
            if number == location.value:
                found.append(location.port)
            elif mark is None or number in search.held:
                found.append(array)
            else:
                region = search.region() | {number}
                other = search.find(number, region)
                if other is None:
                    found.append(None)
                    continue
                place, layout = other
                mine = search.current[place]
                assert mine is not None
                found.append(layout.invert(mine.array, array.shape))
                healed[place] = layout.apply(array)
        return found, healed


def reaches_random(tape: Tape, stretch: set[int], known: set[int]) -> bool:
    """Whether a stretch draws random numbers."""
    sources = tape.ancestors(sorted(stretch), until=known) | stretch
    return any(tape.places[i].primitive in RANDOM for i in sources)
