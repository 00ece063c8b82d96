"""The report as a table in a terminal and as JSON."""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxformer.parity.engine.mutation import MutantResult
from jaxformer.parity.report import Report
from jaxformer.porting.compare import DType, Row, all_ok
from jaxformer.terminal import fitted


def as_json(report: Report) -> dict[str, Any]:
    """The report for JSON."""
    return {
        "ok": report.ok,
        "rows": [row._asdict() for row in report.rows],
        "settings": report.settings,
        "summary": [
            {
                "quantity": row.quantity,
                "dtype": row.dtype,
                "error": row.error,
                "bound": row.bound,
                "layer": row.layer,
                "path": row.path,
            }
            for row in _worst(report.rows, _verdict).values()
        ],
        "bugs": {
            "planted": len(report.mutants),
            "caught": sum(mutant.caught for mutant in report.mutants),
            "named": sum(mutant.ok for mutant in report.mutants),
            "findings": [m._asdict() | {"ok": m.ok} for m in report.mutants],
        },
    }


def show(report: Report, console: Console) -> None:
    """Print the settings, the measured errors, the worst of each quantity and the bugs.

    On a terminal lines end between words; tables keep their width.
    """
    for name, value in report.settings.items():
        _say(console, f"{name}: {value}")
    console.print(_table(report.rows, _layer_and_quantity, ("layer", "quantity")))
    console.print("Worst of each quantity, the value nearest to its bound:")
    console.print(_worst_table(report.rows))
    for row in [row for row in report.rows if not row.ok][:20]:
        _say(console, f"OUT OF BOUNDS: {row}", "red")
    _show_bugs(report.mutants, console)
    verdict = "all in bounds" if all_ok(report.rows) else "NOT ALL IN BOUNDS"
    _say(console, f"{len(report.rows)} values compared, {verdict}")


def _say(console: Console, line: str, style: str | None = None) -> None:
    console.print(fitted(line, console.file), style=style, markup=False, highlight=False)


def _show_bugs(mutants: list[MutantResult], console: Console) -> None:
    for mutant in mutants:
        if not mutant.ok:
            result = f"located in {mutant.named}" if mutant.caught else "not caught"
            _say(console, f"BUG IN {mutant.layer}: {mutant.name}: {result}", "red")
    caught, named = sum(m.caught for m in mutants), sum(m.ok for m in mutants)
    _say(console, f"{len(mutants)} bugs planted, {caught} caught, {named} named by their layer")


Group = Callable[[Row], tuple[str, ...]]


def _layer_and_quantity(row: Row) -> tuple[str, ...]:
    """All blocks together, and an attention or a feed-forward network with its projections."""
    parts = re.sub(r"\d+", "*", row.layer).split(".")
    return ".".join(parts[:3]), row.quantity


def _verdict(row: Row) -> tuple[str, ...]:
    """The quantity; what is only reported has no bound to be near to, and stands apart."""
    return row.quantity, "bounded" if row.bound is not None else "reported"


def nearness(row: Row) -> float:
    """error / bound: above 1 is out of bounds. The error itself of what is only reported."""
    if row.bound is None:
        return row.error
    if row.bound == 0.0:
        return math.inf if row.error else 0.0
    return row.error / row.bound


def _worst(rows: Iterable[Row], group: Group) -> dict[tuple[tuple[str, ...], DType], Row]:
    """The row of each group and type that is nearest to its bound, or furthest beyond it."""
    worst: dict[tuple[tuple[str, ...], DType], Row] = {}
    for row in rows:
        key = group(row), row.dtype
        if key not in worst or _order(row) > _order(worst[key]):
            worst[key] = row
    return worst


def _order(row: Row) -> tuple[bool, bool, float, float]:
    return not row.ok, row.bound is not None, nearness(row), row.error


def _worst_table(rows: list[Row]) -> Table:
    table = Table(box=box.SIMPLE, padding=(0, 1))
    for heading in ("quantity", "type"):
        table.add_column(heading, no_wrap=True)
    for heading in ("values", "error", "bound", "error/bound"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("where", overflow="fold")
    counts = Counter((_verdict(row), row.dtype) for row in rows)
    for key, row in sorted(_worst(rows, _verdict).items(), key=lambda item: item[0][0]):
        near = "" if row.bound is None else f"{nearness(row):.2g}"
        value = row.path.replace("/", ".").rpartition(row.layer)[2].lstrip(".")
        cells = row.quantity, row.dtype, str(counts[key]), *_cells(row), near
        table.add_row(*cells, Text(f"{row.model} {row.layer} {value}"))
    return table


def _table(rows: list[Row], group: Group, headings: tuple[str, ...]) -> Table:
    dtypes = list(dict.fromkeys(row.dtype for row in rows))
    table = Table(box=box.SIMPLE, padding=(0, 1))
    for heading in headings:
        table.add_column(heading, no_wrap=True)
    for dtype in dtypes:
        table.add_column("values", justify="right")
        table.add_column(dtype, justify="right", no_wrap=True)
        table.add_column("bound", justify="right", no_wrap=True)
    counts = Counter((group(row), row.dtype) for row in rows)
    worst = _worst(rows, group)
    for key in sorted({group(row) for row in rows}):
        cells = []
        for dtype in dtypes:
            row = worst.get((key, dtype))
            cells += ["", "", ""] if row is None else [str(counts[key, dtype]), *_cells(row)]
        table.add_row(*key, *cells)
    return table


def _cells(row: Row) -> tuple[str, str]:
    bound = "reported" if row.bound is None else f"{row.bound:.1e}"
    return (f"{row.error:.1e}" if row.ok else f"[red]{row.error:.1e} NO[/red]"), bound
