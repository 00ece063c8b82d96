"""What a comparison finds: faults in order of execution, as text and as JSON."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class Fault:
    """One place where the two sides part by a fault of its own."""

    torch: str
    """The PyTorch module; empty for the model itself."""
    jax: str | None
    """The place in the port: the scope of its operation, or None."""
    quantity: str
    """output, input_grad, param_grad, weights."""
    error: float
    bound: float
    cause: str | None
    evidence: str
    torch_line: str = ""
    jax_line: str = ""

    def as_json(self) -> dict[str, Any]:
        """The fault with the keys of the JSON form."""
        return dataclasses.asdict(self)


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

    carried: dict[str, Any] | None = None
    """Which leaves hold which tensors, if the original's weights were carried into the port."""

    def as_json(self) -> dict[str, Any]:
        """The JSON form: `ok`, `faults`, and what was compared."""
        return {
            "ok": self.ok,
            "faults": [fault.as_json() for fault in self.faults],
            "error": self.error,
            "bound": self.bound,
            "compared": self.compared,
            "notes": self.notes,
            "carried": self.carried,
        }

    def __str__(self) -> str:
        return as_text(self)


def as_text(report: Report) -> str:
    """One line first, then the faults, then the tree with the guilty layers marked."""
    counts = counted(report.compared)
    if report.ok:
        head = f"the port agrees: worst error {report.error:.1e} (bound {report.bound:.0e})"
        return "\n".join([f"{head}; compared {counts}", *_notes(report)])
    if not report.faults:
        return "\n".join([f"not compared: {counts}", *_notes(report)])
    groups = grouped(report.faults)
    first = report.faults[0]
    more = f" and {len(groups) - 1} more" if len(groups) > 1 else ""
    lines = [f"the port departs at {where(first)}{because(first)}{more}; compared {counts}"]
    for group in groups:
        fault, others = group[0], len(group) - 1
        repeated = f" and {others} more like it" if others else ""
        lines += [
            "",
            f"  {where(fault)}{repeated}{because(fault)}",
            f"    {fault.quantity}: error {fault.error:.1e}, bound {fault.bound:.0e}",
            f"    torch {fault.torch_line or '-'}",
            f"    jax   {jax_place(fault)}",
            f"    {fault.evidence}",
        ]
    return "\n".join([*lines, *_notes(report)])


def counted(compared: Mapping[str, int]) -> str:
    """How much was compared: `outputs 1, modules found 23 of 23`."""
    return ", ".join(
        f"{what} found {number} of {compared[f'all_{what}']}"
        if f"all_{what}" in compared
        else f"{what} {number}"
        for what, number in compared.items()
        if not what.startswith("all_")
    )


def where(fault: Fault) -> str:
    """The module's name, or words for the model itself."""
    return fault.torch or "the model itself"


def jax_place(fault: Fault) -> str:
    """The line and the name of the port's side, once if they are the same."""
    known = filter(None, (fault.jax_line, fault.jax))
    return " ".join(dict.fromkeys(known)) or "-"


def because(fault: Fault) -> str:
    """The cause behind a colon."""
    return f": {fault.cause}" if fault.cause else ": no known cause"


def grouped(faults: Sequence[Fault]) -> list[list[Fault]]:
    """Faults that repeat over layers together: names that differ in numbers alone, one cause."""
    groups: dict[tuple, list[Fault]] = {}
    for fault in faults:
        key = (re.sub(r"\d+", "*", fault.torch), fault.quantity, fault.cause)
        groups.setdefault(key, []).append(fault)
    return list(groups.values())


def _notes(report: Report) -> list[str]:
    return [f"note: {note}" for note in report.notes]
