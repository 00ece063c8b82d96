"""What a compiled program sends between its devices, read from its text.

    compiled = jax.jit(step, ...).lower(state, batch).compile()
    for collective in collectives(compiled.as_text()):
        print(collective.kind, collective.arrays, collective.times, collective.sent)

The text is that of one device's program after XLA has divided it (HLO, `compile().as_text()`):
computations that call each other, loops by their body, collectives as instructions with the arrays
that they result in. Both forms of an instruction are read, at once (`all-reduce`) and begun early
(`all-reduce-start`). A loop whose trip count is in the text (`known_trip_count`) counts as often;
any other counts once, and what is in it is marked as a lower bound.
"""

import math
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")

CALLS = ("while", "conditional", "call", "async-start")
"""Operations whose computations are run as programs are; that of a fusion is one kernel's."""

_INSTRUCTION = re.compile(r' = (?P<result>[^"]+?) (?P<operation>[a-z][\w\-]*)\((?P<rest>.*)')
_COMPUTATION = re.compile(r"^(?P<entry>ENTRY )?%?(?P<name>[\w.\-]+) \(.*\{$")
_CALL = re.compile(
    r"(?P<role>calls|to_apply|body|condition|(?:true|false)_computation)=%?(?P<one>[\w.\-]+)"
    r"|branch_computations=\{(?P<many>[^}]*)\}"
)
_ARRAY = re.compile(r"(?P<type>[a-z]+(?P<bits>\d*)\w*)\[(?P<shape>[\d,]*)\]")
_TRIPS = re.compile(r'known_trip_count"?[:=]\{"?n"?:"?(\d+)')


class Collective(NamedTuple):
    """One instruction that sends, as one device sees it."""

    kind: str
    """One of KINDS."""
    arrays: tuple[str, ...]
    """Type and shape of each array it results in on a device, such as `f32[32,128]`."""
    devices: int
    """How many devices exchange with one another; 1 sends nothing."""
    times: int
    """How often a call of the program runs it."""
    at_least: bool
    """Whether `times` is a lower bound: it is in a loop of unknown trip count."""
    origin: str
    """The operation of the source, as jax names it: `transpose(` stands in it going backwards."""

    @property
    def bytes(self) -> int:
        """Of the arrays that one run results in, on one device."""
        return sum(array_bytes(array) for array in self.arrays)

    @property
    def sent(self) -> float:
        """Bytes that each device sends in one run, around a ring of n devices.

        All-reduce sends (n-1)/n of its result twice, all-gather and all-to-all once, reduce-scatter
        n-1 times its result, which is an n-th of what is reduced (Patarasuk & Yuan 2009, "Bandwidth
        optimal all-reduce algorithms", section 3). Collective-permute sends its result.
        """
        n = self.devices
        share = {
            "all-reduce": 2 * (n - 1) / n,
            "all-gather": (n - 1) / n,
            "all-to-all": (n - 1) / n,
            "reduce-scatter": n - 1,
            "collective-permute": 1,
        }
        return float(share[self.kind] * self.bytes)


class Total(NamedTuple):
    """All collectives of a kind in one call of a program."""

    number: int
    """Runs of an instruction, those in loops counted by turns."""
    bytes: int
    """Of the resulting arrays on one device."""
    sent: float
    """Bytes that each device sends."""


def collectives(compiled_text: str) -> list[Collective]:
    """Every collective of a program, in the order of its calls; `compile().as_text()` is the text.

    A computation that is called from two places gives its collectives twice.
    """
    header, _, _ = compiled_text.partition("\n")
    found = re.search(r"(?:num_partitions|replica_count)=(\d+)", header)
    devices = int(found[1]) if found else 1
    return [
        _collective(one, devices)
        for one in executed(compiled_text)
        if one.operation.removesuffix("-start") in KINDS
    ]


def totals(found: Iterable[Collective]) -> dict[str, Total]:
    """Number, bytes and bytes sent of each kind there is."""
    sums: dict[str, Total] = {}
    for one in found:
        before = sums.get(one.kind, Total(0, 0, 0.0))
        sums[one.kind] = Total(
            before.number + one.times,
            before.bytes + one.times * one.bytes,
            before.sent + one.times * one.sent,
        )
    return sums


def array_bytes(array: str) -> int:
    """Bytes of an array such as `f32[32,128]` or `pred[]`; a predicate takes one."""
    parts = _ARRAY.fullmatch(array)
    assert parts is not None, array
    if parts["type"] == "token":
        return 0
    elements = math.prod(int(size) for size in parts["shape"].split(",") if size)
    return math.ceil(elements * int(parts["bits"] or 8) / 8)


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """The instructions of each computation by its name, and the name of the first to run."""
    found: dict[str, list[str]] = {}
    entry, lines = "", []
    for line in text.splitlines():
        if heading := _COMPUTATION.match(line):
            lines = found[heading["name"]] = []
            entry = heading["name"] if heading["entry"] else entry
        elif " = " in line:
            lines.append(line)
    return found, entry


class Instruction(NamedTuple):
    """One line of a program's text."""

    operation: str
    """Such as `fusion`, `custom-call` or `all-reduce-start`."""
    arrays: tuple[str, ...]
    """Type and shape of each array it results in, such as `f32[32,128]`."""
    attributes: str
    """Its operands and all that follows them."""
    times: int
    """How often a call of the program runs it; in a loop, by its trips."""
    at_least: bool
    """Whether `times` is a lower bound: it is in a loop of unknown trip count."""


def executed(compiled_text: str) -> Iterator[Instruction]:
    """Every instruction that runs, in the order of the calls; not what is inside a fusion.

    A computation that is called from two places gives its instructions twice.
    """
    computations, entry = _computations(compiled_text)
    return _walk(computations, entry, 1, False)


def _walk(
    computations: dict[str, list[str]], name: str, times: int, at_least: bool
) -> Iterator[Instruction]:
    for line in computations.get(name, ()):
        if (parts := _INSTRUCTION.search(line)) is None:
            continue
        operation, rest = parts["operation"], parts["rest"]
        arrays = tuple(array[0] for array in _ARRAY.finditer(parts["result"]))
        yield Instruction(operation, arrays, rest, times, at_least)
        if operation not in CALLS:
            continue
        trips = _TRIPS.search(rest)
        unknown = operation == "while" and trips is None
        for call in _CALL.finditer(rest):
            if trips and call["role"] == "condition":  # not evaluated
                continue
            for called in re.findall(r"[\w.\-]+", call["one"] or call["many"]):
                n = times * int(trips[1]) if trips else times
                yield from _walk(computations, called, n, at_least or unknown)


def _collective(one: Instruction, devices: int) -> Collective:
    arrays, kind = one.arrays, one.operation.removesuffix("-start")
    if one.operation.endswith("-start") and kind != "all-reduce":
        # Begun early, it names what it takes beside what it gives, and may add two counters.
        arrays = tuple(array for array in arrays if array != "u32[]")
        arrays = arrays[len(arrays) // 2 :]
    origin = re.search(r'op_name="([^"]*)"', one.attributes)
    return Collective(
        kind,
        arrays,
        _group_size(one.attributes, devices),
        one.times,
        one.at_least,
        origin[1] if origin else "",
    )


def _group_size(attributes: str, devices: int) -> int:
    """Devices of one group: XLA writes groups as lists, as a grid, or as axes of a mesh."""
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        return len(listed[1].split(","))
    if grid := re.search(r"replica_groups=\[\d+,(\d+)\]<=", attributes):
        return int(grid[1])
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", attributes):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
        # An axis may be named in part, as 'axis':(what comes before)size.
        axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", mesh[2])
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
    return devices
