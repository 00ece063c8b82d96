"""A fault as narrow as it can be told: a wrong leaf, or a right operation on a wrong value."""

import dataclasses
from collections.abc import Iterable

import numpy as np

from jaxformer.porting.healing import Location, Search
from jaxformer.porting.layouts import arrangements, distance, nearest
from jaxformer.porting.pairing import Print
from jaxformer.porting.recorder import LAYOUT_OPERATIONS, Value

STRETCH = 40
"""Operations that lie between a value and the input that is tried in its stead."""


def narrowed(search: Search, location: Location) -> Location:
    """The same fault in the leaf or in the input that makes the place right, if there is one."""
    if location.edges:
        return location
    return _by_leaf(search, location) or _by_wiring(search, location) or location


def _heals(search: Search, location: Location, replaced: dict[int, np.ndarray]) -> bool:
    """Whether other replaced values make the located one right."""
    values = {**search.healed, **replaced}
    changed = search.tape.replay(values, search.seen, last=location.place)
    mine = Print.of(changed.get(location.place))
    theirs = location.layout.apply(search.recording.values[location.value].array)
    return mine is not None and distance(mine.array, theirs) <= search.bound


def _by_leaf(search: Search, location: Location) -> Location | None:
    """A parameter of the port that is not what PyTorch's is: with it the place is right."""
    sources = search.tape.ancestors([location.place], until=search.taken | set(search.healed))
    leaves = [p for p in sources if search.tape.places[p].primitive == "leaf"]
    for source in _parameters(search, location.region):
        theirs = source.array
        for leaf in leaves:
            mine = search.current[leaf]
            if mine is None or mine.size != theirs.size:
                continue
            for _, layout in nearest(theirs, mine.array, limit=6):
                right = layout.apply(theirs)
                if distance(mine.array, right) <= search.bound:
                    continue
                if _heals(search, location, {leaf: right}):
                    return dataclasses.replace(
                        location,
                        owner=source.name.rpartition(".")[0],
                        leaf=search.tape.places[leaf].name,
                        parameter=source.name,
                        way=layout,
                    )
    return None


def _parameters(search: Search, region: Iterable[int]) -> list[Value]:
    """The parameters and buffers that a stretch uses."""
    values = search.recording.values
    found, pending = set(), list(region)
    while pending:
        for source in values[pending.pop()].inputs:
            if source not in found and not values[source].active:
                found.add(source)
                pending.append(source)
    named = [values[i] for i in sorted(found) if values[i].function in ("parameter", "buffer")]
    return [value for value in named if search.theirs[value.index] is not None]


def _by_wiring(search: Search, location: Location) -> Location | None:
    """An operation that is right by itself and is given a wrong or wrongly moved value."""
    sources = search.tape.ancestors([location.place], until=set(search.healed))
    near = sorted(sources - set(search.healed))[-STRETCH:]
    for number, user in _moved_inputs(search, location.value):
        mark = search.theirs[number]
        assert mark is not None
        for place in near[::-1]:
            mine = search.current[place]
            if mine is None or mine.size != mark.size:
                continue
            layouts = [layout for _, layout in nearest(mark.array, mine.array)]
            if mine.array.shape == mark.array.shape:
                layouts = list(arrangements(mine.array.shape, mark.array.shape).layouts[:1])
            for layout in layouts:
                right = layout.apply(mark.array)
                if distance(mine.array, right) > search.bound and _heals(
                    search, location, {place: right}
                ):
                    owner = _passing(search, number, user, location)
                    return dataclasses.replace(location, owner=owner, wiring=True)
    return None


def _moved_inputs(search: Search, operation: int) -> list[tuple[int, int]]:
    """The held inputs of an operation and what they are moved from, each with its user.

    The first in order of execution first.
    """
    found: dict[int, int] = {}
    pending = [(number, operation) for number in search.recording.values[operation].inputs]
    while pending:
        number, user = pending.pop(0)
        value = search.recording.values[number]
        if number in found or not value.active or number not in search.held:
            continue
        found[number] = user
        if value.function in LAYOUT_OPERATIONS:
            pending += [(source, number) for source in value.inputs]
    return list(found.items())[::-1]


def _passing(search: Search, number: int, user: int, location: Location) -> str:
    """The module that gives an operation the wrong value."""
    values = search.recording.values
    if all(search.moved_as(number, place) is None for place in search.held[number]):
        return values[number].owner  # in the wrong order everywhere
    if user != location.value:
        return values[user].owner
    called = [call for call in search.recording.calls if call.name == values[user].owner]
    if any(number in call.inputs for call in called):
        names = {call.name for call in search.recording.calls}
        parent = values[user].owner
        while parent:
            parent = parent.rpartition(".")[0]
            if parent in names:  # a list of modules is never called
                return parent
    return location.owner
