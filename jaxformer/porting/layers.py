"""The modules of the original in order of execution, each with the port's error at its output.

An error is measured twice: as the port runs, which is what a module inherits and what it adds, and
with every fault before it healed, which is what it adds by itself.
"""

import dataclasses
from collections.abc import Iterable, Mapping

import numpy as np

from jaxformer.porting.findings import Layer
from jaxformer.porting.healing import Search
from jaxformer.porting.layouts import distance, nearest
from jaxformer.porting.pairing import Index
from jaxformer.porting.tape import Place, Tape

ROUGHLY = 1e-5
"""Of a value that nothing else identifies: float32 on one side may have rounded it."""


def layers_of(search: Search, kinds: Mapping[str, str]) -> list[Layer]:
    """The modules that ran, by their names in `kinds`, in the order in which they began."""
    healed = {at.place: at.error for at in search.locations if at.place in search.healed}
    rough = Index({place: search.current[place] for place in search.live})
    ends = {pair.torch: [pair.jax] for pair in search.outputs}
    found: dict[str, Layer] = {}
    for call in search.recording.calls:
        layer = found.setdefault(call.name, Layer(call.name, kinds.get(call.name, "")))
        for number in call.outputs:
            mark = search.theirs[number]
            if mark is None:
                continue
            near = search.chosen.get(number) or rough.find(mark, ROUGHLY)
            places = search.held.get(number, near)
            places = places if call.name else ends.get(number, places)
            measured = _measured(search, number, places)
            if measured is None:
                continue
            error, own, index = measured
            place = search.tape.places[index]
            layer = dataclasses.replace(
                layer,
                jax=jax_name(place.scope) or line_of(search.tape, place) or layer.jax,
                error=float(np.fmax(error, layer.error)),
                own=float(np.fmax(healed.get(index, own), layer.own)),
            )
        found[call.name] = layer
    return list(found.values())


def _measured(
    search: Search, number: int, places: Iterable[int]
) -> tuple[float, float, int] | None:
    """The error of a PyTorch value as the port runs, by itself, and its place in the port."""
    theirs, found = search.theirs[number], []
    assert theirs is not None
    for place in places:
        layout = search.moved_as(number, place)
        if layout is None and number in search.chosen:
            layout = nearest(theirs.array, search.tape.values[place], 1)[0][1]
        before, after = search.prints[place], search.current[place]
        if before is None or after is None:
            continue
        if layout is None:  # the same numbers in an order that is no layout
            pairs = [(x.sorted, theirs.sorted) for x in (before, after)]
        else:
            pairs = [(x.array, layout.apply(theirs.array)) for x in (before, after)]
        error, own = (distance(*pair) for pair in pairs)
        found.append((error, own, place))
    return min(found, default=None)


def line_of(tape: Tape, place: Place) -> str:
    """The line of a value; that of what it is made of if a loop made it."""
    lines = (place.line, *(tape.places[i].line for i in place.inputs))
    return next(filter(None, lines), "")


def jax_name(scope: str) -> str:
    """The module of a name stack."""
    parts = [part for part in scope.split("/") if part and "->" not in part]  # of an einsum
    named = [part[4:] for part in parts if part.startswith("nnx:")]
    return named[-1] if named else "/".join(parts)
