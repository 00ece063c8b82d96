"""Which places of a port are at fault: by value, and by healing.

The PyTorch values that no place on the tape holds, and that reach an output without passing one
that is held, are the region of the faults. Its values are put, in order of execution, in the place
of a JAX value, and the tape is run on from there: where values behind it agree again, a fault is
found. What it healed stays healed, and the search goes on until all outputs agree; so every fault
is judged on right inputs, and none is blamed for an error that it only received.
"""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from jaxformer.porting.interpreter import Tape
from jaxformer.porting.layouts import Layout, arrangements, distance, nearest
from jaxformer.porting.pairing import Index, Print
from jaxformer.porting.recorder import LAYOUT_OPERATIONS, Recording, Value

MOST_PLACES = 8
"""Places that are tried for one value, the most similar first."""
STRETCH = 40
"""Operations that lie between a value and the input that is tried in its stead."""


@dataclasses.dataclass(frozen=True)
class OutputPair:
    """A result of both sides, and the layout from PyTorch's to the port's."""

    path: str
    torch: int
    jax: int
    layout: Layout


@dataclasses.dataclass(frozen=True)
class Location:
    """A stretch of the port that is at fault by itself."""

    owner: str
    """The PyTorch module."""
    value: int
    """The PyTorch value that the port has wrong, its inputs being right."""
    place: int
    """Where the port has it."""
    layout: Layout
    error: float
    port: np.ndarray
    """The port's numbers, in the layout of PyTorch's value."""
    region: tuple[int, ...]
    """The PyTorch values of the stretch."""
    leaf: str = ""
    """The leaf of the port that heals it, if a leaf does."""
    parameter: str = ""
    """The tensor that this leaf should be."""
    way: Layout | None = None
    """The layout in which the leaf would be right."""
    wiring: bool = False
    """Whether the operation is right and is given the wrong value."""


class Search:
    """The state of a search: which values are held where, and what is healed."""

    def __init__(
        self, tape: Tape, recording: Recording, outputs: Sequence[OutputPair], bound: float
    ):
        self.tape, self.recording, self.outputs, self.bound = tape, recording, outputs, bound
        self.healed: dict[int, np.ndarray] = {}
        self.prints = {p.index: Print.of(v) for p, v in zip(tape.places, tape.values, strict=True)}
        self.theirs = [Print.of(value.array) for value in recording.values]
        self.users = recording.users()
        self.live = tape.ancestors(tape.outputs) | set(tape.outputs)
        self.weights = tape.moved_leaves()
        self.current = dict(self.prints)
        self.pair()

    def pair(self) -> None:
        """Find every PyTorch value among the current values of the tape."""
        index = Index(
            {p: m for p, m in self.current.items() if p in self.live and p not in self.weights}
        )
        self.held = {
            number: places
            for number, mark in enumerate(self.theirs)
            if mark is not None and (places := index.find(mark, self.bound))
        }
        self.taken = {place for places in self.held.values() for place in places}

    def output_error(self, pair: OutputPair, values: dict[int, Print | None]) -> float:
        """The exact error of an output in its one layout."""
        mark = values.get(pair.jax, self.current[pair.jax])
        theirs = self.recording.values[pair.torch].array
        if mark is None:
            return float(np.count_nonzero(self.tape.values[pair.jax] != pair.layout.apply(theirs)))
        return distance(mark.array, pair.layout.apply(theirs))

    def wrong_outputs(self) -> list[OutputPair]:
        """The outputs that still differ."""
        return [p for p in self.outputs if not self.output_error(p, {}) <= self.bound]

    def region(self) -> set[int]:
        """The PyTorch values that reach a wrong output without passing one that is held."""
        found: set[int] = set()
        pending = [pair.torch for pair in self.wrong_outputs()]
        while pending:
            index = pending.pop()
            found.add(index)
            for source in self.recording.values[index].inputs:
                value = self.recording.values[source]
                if value.active and source not in found and source not in self.held:
                    pending.append(source)
        return found

    def next(self) -> Location | None:
        """The first fault in order of execution, healed from now on; None if there is none."""
        region = self.region()
        if not region:
            return None
        tried: list[Print] = []
        for number in sorted(region):
            mark = self.theirs[number]
            if mark is None or any(mark.same(other, self.bound) for other in tried):
                continue
            tried.append(mark)
            location = self.heal(number, region)
            if location is not None:
                return location
        return None

    def heal(self, number: int, region: set[int]) -> Location | None:
        """The place of the port where this value makes values behind it agree again."""
        behind = self.behind(number, region)
        mark = self.theirs[number]
        assert mark is not None
        for place, layout in self.candidates(number, region):
            healed = layout.apply(self.recording.values[number].array)
            changed = self.changed({place: healed})
            if self.agrees(number, place, behind, changed):
                return self.located(number, place, layout, region)
        return None

    def candidates(self, number: int, region: set[int]) -> list[tuple[int, Layout]]:
        """Places that may stand for a value: of its size, and computed from what it is made of.

        The most similar ones, then those soonest behind what is held.
        """
        mark = self.theirs[number]
        assert mark is not None
        known = [
            self.held[source][0]
            for index in self.stretch(number, region)
            for source in self.recording.values[index].inputs
            if source in self.held
        ]
        after = self.tape.descendants(known) if known else self.live
        found = []
        for place in sorted((self.live & after) - self.taken - set(self.healed)):
            other = self.current[place]
            if other is None or other.size != mark.size or not self.tape.places[place].inputs:
                continue
            found += [(place, layout, e) for e, layout in nearest(mark.array, other.array)]
        similar = sorted(found, key=lambda candidate: (round(candidate[2], 6), candidate[0]))
        chosen = [*similar[: 2 * MOST_PLACES], *found[: 2 * MOST_PLACES]]
        return list(dict.fromkeys((place, layout) for place, layout, _ in chosen))

    def changed(self, replaced: dict[int, np.ndarray]) -> dict[int, Print | None]:
        """The fingerprints of the values that change when these are replaced as well."""
        values = self.tape.replay({**self.healed, **replaced})
        return {place: Print.of(value) for place, value in values.items()}

    def behind(self, number: int, region: set[int]) -> list[int]:
        """The values of the region that are computed from this one, and are not only moved."""
        found: set[int] = set()
        pending = [number]
        while pending:
            for user in self.users[pending.pop()]:
                if user in region and user not in found:
                    found.add(user)
                    pending.append(user)
        own = self.theirs[number]
        return [
            index
            for index in sorted(found)
            if (mark := self.theirs[index]) is not None
            and (own is None or not mark.same(own, self.bound))
        ]

    def agrees(
        self, number: int, place: int, behind: list[int], changed: dict[int, Print | None]
    ) -> bool:
        """Whether values behind a healed one are held now, or the output is right."""
        wrong = self.wrong_outputs()
        if any(self.output_error(pair, changed) <= self.bound for pair in wrong):
            return True
        index = Index({p: m for p, m in changed.items() if p in self.live and p != place})
        roots = {pair.torch for pair in wrong}
        return any(
            mark is not None and index.find(mark, self.bound)
            for mark in (self.theirs[other] for other in behind if other not in roots)
        )

    def located(self, number: int, place: int, layout: Layout, region: set[int]) -> Location:
        """The fault that a heal has found, as narrow as it can be told; it stays healed."""
        values = self.recording.values
        stretch = self.stretch(number, region)
        owner = common([values[index].owner for index in stretch])
        mine, theirs = self.current[place], self.theirs[number]
        assert mine is not None
        assert theirs is not None
        port = layout.invert(mine.array, theirs.array.shape)
        error = distance(port, theirs.array)
        location = Location(owner, number, place, layout, error, port, tuple(stretch))
        location = self.by_leaf(location) or self.by_wiring(location) or location
        self.heal_place(place, layout.apply(values[number].array))
        return location

    def heal_place(self, place: int, value: np.ndarray) -> None:
        """Keep a value in the place of the port's from now on."""
        self.healed[place] = value
        changed = self.changed({})
        self.current = {**self.prints, **changed}
        self.pair()

    def stretch(self, number: int, region: set[int]) -> list[int]:
        """The values of the region that this one is computed from, and itself."""
        found, pending = {number}, [number]
        while pending:
            for source in self.recording.values[pending.pop()].inputs:
                if source in region and source not in found:
                    found.add(source)
                    pending.append(source)
        return sorted(found)

    def heals(self, location: Location, replaced: dict[int, np.ndarray]) -> bool:
        """Whether other replaced values make the located one right."""
        changed = self.changed(replaced).get(location.place)
        theirs = location.layout.apply(self.recording.values[location.value].array)
        return changed is not None and distance(changed.array, theirs) <= self.bound

    def by_leaf(self, location: Location) -> Location | None:
        """A parameter of the port that is not what PyTorch's is: with it the place is right."""
        sources = self.tape.ancestors([location.place], until=self.taken | set(self.healed))
        leaves = [p for p in sources if self.tape.places[p].primitive == "leaf"]
        for source in self.parameters(location.region):
            theirs = source.array
            for leaf in leaves:
                mine = self.current[leaf]
                if mine is None or mine.size != theirs.size:
                    continue
                for _, layout in nearest(theirs, mine.array, limit=6):
                    right = layout.apply(theirs)
                    if distance(mine.array, right) <= self.bound:
                        continue
                    if self.heals(location, {leaf: right}):
                        return dataclasses.replace(
                            location,
                            owner=source.name.rpartition(".")[0],
                            leaf=self.tape.places[leaf].name,
                            parameter=source.name,
                            way=layout,
                        )
        return None

    def parameters(self, region: Iterable[int]) -> list[Value]:
        """The parameters and buffers that a stretch uses."""
        values = self.recording.values
        found, pending = set(), list(region)
        while pending:
            for source in values[pending.pop()].inputs:
                if source not in found and not values[source].active:
                    found.add(source)
                    pending.append(source)
        named = [values[i] for i in sorted(found) if values[i].function in ("parameter", "buffer")]
        return [value for value in named if self.theirs[value.index] is not None]

    def by_wiring(self, location: Location) -> Location | None:
        """An operation that is right by itself and is given the wrong value."""
        values = self.recording.values
        operation = values[location.value]
        sources = self.tape.ancestors([location.place], until=set(self.healed))
        near = sorted(sources)[-STRETCH:]
        for number in self.moved_inputs(operation):
            given, mark = values[number], self.theirs[number]
            assert mark is not None
            for place in near[::-1]:
                mine = self.current[place]
                if mine is None or mine.size != mark.size or place in self.healed:
                    continue
                if mine.array.shape == given.array.shape:
                    same = mine.array.shape
                    layouts: Sequence[Layout] = arrangements(same, same).layouts[:1]
                else:
                    layouts = [layout for _, layout in nearest(mark.array, mine.array)]
                for layout in layouts:
                    right = layout.apply(mark.array)
                    if distance(mine.array, right) <= self.bound:
                        continue
                    if self.heals(location, {place: right}):
                        moved = given.function in LAYOUT_OPERATIONS
                        caller = location.owner.rpartition(".")[0]
                        owner = given.owner if moved else caller
                        return dataclasses.replace(location, owner=owner, wiring=True)
        return None

    def moved_inputs(self, operation: Value) -> list[int]:
        """The held inputs of an operation and what they are made of by moving; those first."""
        found: list[int] = []
        pending = list(operation.inputs)
        while pending:
            number = pending.pop(0)
            value = self.recording.values[number]
            if number in found or not value.active or number not in self.held:
                continue
            found.append(number)
            if value.function in LAYOUT_OPERATIONS:
                pending += value.inputs
        return found[::-1]


def common(names: Sequence[str]) -> str:
    """The innermost module that holds all of these."""
    paths = [name.split(".") if name else [] for name in names]
    shared = []
    for parts in zip(*paths, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return ".".join(shared)
