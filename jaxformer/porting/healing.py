"""Which places of a port are at fault: by value, and by healing.

The PyTorch values that no place on the tape holds, and that reach an output without passing one
that is held, are the region of the faults. Its values are put, in order of execution, in the place
of a JAX value, and the tape is run on from there: where values behind it agree again, a fault is
found. What it healed stays healed, and the search goes on until all outputs agree; so every fault
is judged on right inputs, and none is blamed for an error that it only received.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from jaxformer.porting.layouts import Layout, distance, nearest
from jaxformer.porting.pairing import Index, Print
from jaxformer.porting.recorder import Recording
from jaxformer.porting.tape import Tape

MOST_PLACES = 8
"""Places that are tried for one value, the most similar first."""
_NOTHING: Mapping[int, np.ndarray] = {}
_CHOSEN: Mapping[int, Sequence[int]] = {}
_SEEN: Mapping[tuple[int, int], np.ndarray] = {}


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
    edges: Mapping[tuple[int, int], Layout] = dataclasses.field(default_factory=dict)
    """The uses of a place that lack an operation, if the port leaves it out."""


class Search:
    """The state of a search: which values are held where, and what is healed."""

    def __init__(
        self,
        tape: Tape,
        recording: Recording,
        outputs: Sequence[OutputPair],
        bound: float,
        chosen: Mapping[int, Sequence[int]] = _CHOSEN,
    ):
        self.tape, self.recording, self.outputs, self.bound = tape, recording, outputs, bound
        self.chosen = chosen
        """The places that alone may stand for a PyTorch value, where the user says so."""
        self.healed: dict[int, np.ndarray] = {}
        self.seen: dict[tuple[int, int], np.ndarray] = {}
        self.locations: list[Location] = []
        """What was healed, in order."""
        self.prints = {p.index: Print.of(v) for p, v in zip(tape.places, tape.values, strict=True)}
        self.theirs = [Print.of(value.array) for value in recording.values]
        self.users = recording.users()
        self.users_of: list[list[int]] = [[] for _ in tape.places]
        for place in tape.places:
            for source in place.inputs:
                self.users_of[source].append(place.index)
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
            if mark is not None and (places := self.holding(number, mark, index))
        }
        self.taken = {place for places in self.held.values() for place in places}

    def holding(self, number: int, mark: Print, index: Index) -> list[int]:
        """The places that hold a PyTorch value."""
        if number not in self.chosen:
            return index.find(mark, self.bound)
        marks = {place: self.current[place] for place in self.chosen[number]}
        return [place for place, own in marks.items() if own and own.same(mark, self.bound)]

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
        """The first fault in order of execution; None if there is none."""
        region = self.region()
        tried: list[Print] = []
        for number in sorted(region):
            mark = self.theirs[number]
            if mark is None:
                continue
            if number not in self.chosen and any(mark.same(x, self.bound) for x in tried):
                continue
            tried.append(mark)
            found = self.find(number, region)
            if found is not None:
                return self.located(number, *found, region)
            edges = self.find_missing(number, region)
            if edges:
                return self.located_missing(number, edges, region)
        wrong = self.wrong_outputs()
        if wrong:
            return self.located(wrong[0].torch, wrong[0].jax, wrong[0].layout, region)
        return None

    def heal(self, location: Location, values: Mapping[int, np.ndarray] = _NOTHING) -> None:
        """Keep PyTorch's value in the place of the port's; `values` if they say more."""
        theirs = self.recording.values[location.value].array
        self.locations.append(location)
        if values:
            self.healed.update(values)
        elif location.edges:
            layouts = location.edges
            self.seen.update({edge: layout.apply(theirs) for edge, layout in layouts.items()})
        else:
            self.healed[location.place] = location.layout.apply(theirs)
        self.current = {**self.prints, **self.changed({})}
        self.pair()

    def find(self, number: int, region: set[int]) -> tuple[int, Layout] | None:
        """The place of the port where this value makes values behind it agree again.

        In the layout in which most do: what is computed number by number agrees in each.
        """
        behind = self.behind(number, region)
        layouts: dict[int, list[Layout]] = {}
        for place, layout in self.candidates(number, region):
            layouts.setdefault(place, []).append(layout)
        for place, several in layouts.items():
            scores = [self.score(place, number, layout, behind) for layout in several]
            if max(scores) or number in self.chosen:
                return place, several[scores.index(max(scores))]
        return None

    def score(self, place: int, number: int, layout: Layout, behind: list[int]) -> int:
        """How many values behind agree if a place holds a PyTorch value in a layout."""
        healed = layout.apply(self.recording.values[number].array)
        return self.agreeing(place, behind, self.changed({place: healed}))

    def find_missing(self, number: int, region: set[int]) -> dict[tuple[int, int], Layout]:
        """The uses of an operation's input that should be of its output: it is missing."""
        value, mark = self.recording.values[number], self.theirs[number]
        assert mark is not None
        behind = self.behind(number, region)
        best: tuple[int, dict[tuple[int, int], Layout]] = (0, {})
        for source in value.inputs:
            for place in self.held.get(source, ()):
                mine = self.current[place]
                if mine is None or mine.size != mark.size:
                    continue
                layout = self.moved_as(source, place)
                if layout is None:
                    continue
                users = [u for u in self.users_of[place] if u in self.live]
                every = [users, *([u] for u in users if len(users) > 1)]
                every += [[u for u in users if u != v] for v in users if len(users) > 2]
                for chosen in every[:MOST_PLACES]:
                    edges = {(place, user): layout for user in chosen}
                    seen = {edge: layout.apply(value.array) for edge in edges}
                    changed = self.changed({}, seen)
                    score = self.agreeing(place, behind, changed)
                    if score > best[0]:
                        best = score, edges
        return best[1]

    def moved_as(self, number: int, place: int) -> Layout | None:
        """The layout in which a place holds a PyTorch value."""
        mine, theirs = self.current[place], self.theirs[number]
        assert mine is not None
        assert theirs is not None
        for _, layout in nearest(theirs.array, mine.array):
            if distance(mine.array, layout.apply(theirs.array)) <= self.bound:
                return layout
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
        places = self.chosen.get(number, (self.live & after) - self.taken - set(self.healed))
        found = []
        for place in sorted(places):
            other = self.current[place]
            if other is None or other.size != mark.size or not self.tape.places[place].inputs:
                continue
            found += [(place, layout, e) for e, layout in nearest(mark.array, other.array)]
        similar = sorted(found, key=lambda candidate: (round(candidate[2], 6), candidate[0]))
        chosen = [*similar[: 2 * MOST_PLACES], *found[: 2 * MOST_PLACES]]
        return list(dict.fromkeys((place, layout) for place, layout, _ in chosen))

    def changed(
        self,
        replaced: Mapping[int, np.ndarray],
        seen: Mapping[tuple[int, int], np.ndarray] = _SEEN,
    ) -> dict[int, Print | None]:
        """The fingerprints of the values that change when these are replaced as well."""
        values = self.tape.replay({**self.healed, **replaced}, {**self.seen, **seen})
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

    def agreeing(self, place: int, behind: list[int], changed: dict[int, Print | None]) -> int:
        """How many values behind a healed one are held now, and outputs right."""
        wrong = self.wrong_outputs()
        right = sum(self.output_error(pair, changed) <= self.bound for pair in wrong)
        index = Index({p: m for p, m in changed.items() if p in self.live and p != place})
        roots = {pair.torch for pair in wrong}
        others = [mark for i in behind if i not in roots and (mark := self.theirs[i]) is not None]
        return right + sum(bool(index.find(mark, self.bound)) for mark in others)

    def located(self, number: int, place: int, layout: Layout, region: set[int]) -> Location:
        """The fault that a heal has found."""
        values = self.recording.values
        stretch = self.stretch(number, region)
        owner = common([values[index].owner for index in stretch])
        mine, theirs = self.current[place], values[number].array
        array = np.asarray(self.tape.values[place], np.float64) if mine is None else mine.array
        port = layout.invert(array, theirs.shape)
        error = distance(port, theirs)
        return Location(owner, number, place, layout, error, port, tuple(stretch))

    def located_missing(
        self, number: int, edges: dict[tuple[int, int], Layout], region: set[int]
    ) -> Location:
        """The fault of an operation that the port leaves out."""
        (place, _), layout = next(iter(edges.items()))
        stretch = self.stretch(number, region)
        owner = common([self.recording.values[index].owner for index in stretch])
        theirs, mine = self.recording.values[number].array, self.current[place]
        assert mine is not None
        port = layout.invert(mine.array, theirs.shape)
        error = distance(port, theirs)
        return Location(owner, number, place, layout, error, port, tuple(stretch), edges=edges)

    def stretch(self, number: int, region: set[int]) -> list[int]:
        """The values of the region that this one is computed from, and itself."""
        found, pending = {number}, [number]
        while pending:
            for source in self.recording.values[pending.pop()].inputs:
                if source in region and source not in found:
                    found.add(source)
                    pending.append(source)
        return sorted(found)


def common(names: Sequence[str]) -> str:
    """The innermost module that holds all of these."""
    paths = [name.split(".") if name else [] for name in names]
    shared = []
    for parts in zip(*paths, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return ".".join(shared)
