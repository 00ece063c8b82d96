"""What `divergence` found in a port beside what is wrong with it, and the table of all ports."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from benchmarks.porting.case import FOLDERS, Case, Fault

Given = Literal["loaded", "fresh"]
"""The port's weights: those of its own conversion, or drawn, so that `divergence` carries them."""
Row = Mapping[str, Any]


def expected(case: Case, given: Given) -> list[Fault]:
    """The faults that are there to be found; carried weights mend those of a conversion."""
    return [fault for fault in case.faults if given == "loaded" or not fault.in_weights]


def score(faults: Sequence[Fault], found: Sequence[Any]) -> dict[str, int]:
    """Counts of one port.

    A report may be right for one place of several that a fault has. One that is right for no fault
    is extra, and then no layer of the port counts as named: naming every layer finds nothing.

    Args:
        faults: what is wrong with the port.
        found: what was reported; each has `torch`, a module's name, and `cause`, a word or None.

    Returns:
        faults: how many there are; layers: how many are located; causes: how many of these with a
        right word; extra: how many reports are right for no fault.
    """
    extra = sum(not any(fault.is_at(report.torch) for fault in faults) for report in found)
    here = [[report for report in found if fault.is_at(report.torch)] for fault in faults]
    named = [
        any(report.cause in fault.words for report in reports)
        for fault, reports in zip(faults, here, strict=True)
    ]
    return {
        "faults": len(faults),
        "layers": 0 if extra else sum(map(bool, here)),
        "causes": 0 if extra else sum(named),
        "extra": extra,
    }


class Totals(NamedTuple):
    """Sums over ports."""

    ports: int = 0
    faults: int = 0
    layers: int = 0
    causes: int = 0
    doubles: int = 0
    doubles_complete: int = 0
    correct: int = 0
    false_alarms: int = 0
    crashes: int = 0

    @classmethod
    def of(cls, rows: Iterable[Row]) -> "Totals":
        """The sums of rows."""
        total = cls()
        for row in rows:
            double, correct = row["faults"] > 1, row["faults"] == 0
            one = cls(
                ports=1,
                faults=row["faults"],
                layers=row["layers"],
                causes=row["causes"],
                doubles=double,
                doubles_complete=double and row["layers"] == row["faults"],
                correct=correct,
                false_alarms=correct and row["extra"] > 0,
                crashes=row["error"] is not None,
            )
            total = cls(*(a + int(b) for a, b in zip(total, one, strict=True)))
        return total


MEASURES = ("layer named", "cause named", "double faults", "false alarms", "crashes")


def cells(rows: Sequence[Row]) -> list[str]:
    """The cells of one line: the ports, then each measure with loaded and with carried weights.

    A first try that differed stands in brackets.
    """
    shown = []
    for given in ("loaded", "fresh"):
        here = [row for row in rows if row["weights"] == given]
        last = _measured(Totals.of(here))
        first = _measured(Totals.of([row["first"] for row in here]))
        both = zip(last, first, strict=True)
        found = [a if a == b else f"{a} (first {b})" for a, b in both]
        shown.append(found if here else ["-"] * len(MEASURES))
    names = {(row["family"], row["case"]) for row in rows}
    return [str(len(names)), *(cell for pair in zip(*shown, strict=True) for cell in pair)]


def _measured(total: Totals) -> list[str]:
    return [
        _share(total.layers, total.faults),
        _share(total.causes, total.faults),
        _share(total.doubles_complete, total.doubles),
        _share(total.false_alarms, total.correct),
        str(total.crashes),
    ]


def _share(part: int, whole: int) -> str:
    return f"{part} of {whole}" if whole else "-"


def table(rows: Sequence[Row]) -> str:
    """Markdown: for each folder the totals by style and by family, beside those with `--carry`."""
    heads = [head for measure in MEASURES for head in (measure, "`--carry`")]
    blocks = []
    for folder in FOLDERS:
        here = [row for row in rows if row["folder"] == folder]
        if not here:
            continue
        lines = [
            f"**{folder}**",
            "",
            f"| | ports | {' | '.join(heads)} |",
            f"| --- |{' ---: |' * (1 + len(heads))}",
        ]
        for key in ("style", "family"):
            for name in sorted({row[key] for row in here}):
                part = [row for row in here if row[key] == name]
                lines.append(f"| {name} | {' | '.join(cells(part))} |")
        lines.append(f"| **all** | {' | '.join(cells(here))} |")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)
