"""The report of a comparison as text and as JSON: the verdict, the tree of the port, the faults."""

import dataclasses
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jaxformer.porting.findings import Fault, Layer, grouped
from jaxformer.porting.tree import Node, tree


@dataclasses.dataclass
class Report:
    """The verdict on a port."""

    ok: bool
    faults: list[Fault]
    error: float = float("nan")
    """The worst error of an output, with nothing healed."""
    bound: float = 0.0
    compared: dict[str, int] = dataclasses.field(default_factory=dict)
    """How many outputs, modules, values, parameters and gradients were compared."""
    notes: list[str] = dataclasses.field(default_factory=list)
    """What is no fault and worth knowing: float32 tables, opaque operations, doubts."""
    layers: list[Layer] = dataclasses.field(default_factory=list)
    """The modules of the original in the order in which they began."""
    carried: dict[str, Any] | None = None
    """Which leaves hold which tensors, if the original's weights were carried into the port."""

    @property
    def inherited(self) -> float:
        """What a layer's error exceeds that inherits one: any, if no layer is at fault."""
        faulty = any(fault.quantity == "output" for fault in self.faults)
        return self.bound if faulty else math.inf

    def as_json(self) -> dict[str, Any]:
        """The JSON form: `ok`, `faults`, what was compared, and every module with its errors."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        return as_text(self)


def as_text(report: Report) -> str:
    """One line if all agrees; else that line, the tree, and each fault with its evidence."""
    lines = [headline(report)]
    if report.faults:
        lines += ["", *tree_lines(report)]
        for group in grouped(report.faults):
            lines += ["", *(f"  {line}" for line in fault_lines(group))]
    return "\n".join([*lines, *(f"note: {note}" for note in report.notes)])


def headline(report: Report) -> str:
    """The verdict in one line, and how much was compared."""
    counts = counted(report.compared)
    error, bound = f"{report.error:.1e}", f"{report.bound:.0e}"
    if report.ok:
        return f"the port agrees: worst error {error} (bound {bound}); compared {counts}"
    if report.faults:
        first, others = report.faults[0], len(grouped(report.faults)) - 1
        more = f" and {others} more" if others else ""
        return f"the port departs at {where(first)}{because(first)}{more}; compared {counts}"
    if report.compared.get("weights") == 0 or not report.compared.get("outputs"):
        return f"not compared: {counts}"
    return f"the outputs differ by {error}, and no layer adds more to it than float32 rounds"


def counted(compared: Mapping[str, int]) -> str:
    """How much was compared: `outputs 1, modules 23 of 23`."""
    return ", ".join(
        f"{what} {number} of {compared[f'all_{what}']}"
        if f"all_{what}" in compared
        else f"{what} {number}"
        for what, number in compared.items()
        if not what.startswith("all_")
    )


def tree_lines(report: Report) -> list[str]:
    """The tree as a table: errors as the port runs and by itself, name, place in the port."""
    rows = list(_rows(tree(report.layers, report.inherited)))
    if not rows:
        return []
    width = max(len(name) for _, name, _ in rows)
    heads = f"    {'as run':>8}  {'by itself':>9}  {'module':{width}}  in the port"
    return [heads, *(f"{left}  {name:{width}}  {place}".rstrip() for left, name, place in rows)]


def _rows(nodes: Sequence[Node], depth: int = 0) -> Iterator[tuple[str, str, str]]:
    for node in nodes:
        layer = node.layer
        mark = ">" if node.status == "fault" else " "
        name = "  " * depth + node.label
        if layer.cause is not None:
            name += f": {layer.cause or 'no known cause'}"
        yield (
            f"  {mark} {shown(layer.error):>8}  {shown(layer.own):>9}",
            name,
            near(layer.jax) if layer.found else "not found",
        )
        yield from _rows(node.inside, depth + 1)


def shown(error: float) -> str:
    """An error, or a dash where there is none."""
    return f"{error:.1e}" if error == error else "-"


def fault_lines(group: Sequence[Fault]) -> list[str]:
    """A fault, how often it repeats, the lines of both sides and the evidence."""
    fault, others = group[0], len(group) - 1
    repeated = f" and {others} more like it" if others else ""
    return [
        f"{where(fault)}{repeated}{because(fault)}",
        f"  {fault.quantity}: error {fault.error:.1e}, bound {fault.bound:.0e}",
        f"  torch {near(fault.torch_line) or '-'}",
        f"  jax   {jax_place(fault)}",
        f"  {near_all(fault.evidence)}",
    ]


def where(fault: Fault) -> str:
    """The module's name, or words for the model itself."""
    return fault.torch or "the model itself"


def jax_place(fault: Fault) -> str:
    """The line and the name of the port's side, once if they are the same."""
    known = filter(None, (fault.jax_line, fault.jax))
    return " ".join(dict.fromkeys(map(near, known))) or "-"


def because(fault: Fault) -> str:
    """The cause behind a colon."""
    return f": {fault.cause}" if fault.cause else ": no known cause"


def near(line: str | None) -> str:
    """A `file.py:line` as seen from the working directory, if the file is in it."""
    return (line or "").removeprefix(os.getcwd() + os.sep)


def near_all(text: str) -> str:
    """A text with all its files as seen from the working directory."""
    return text.replace(os.getcwd() + os.sep, "")
