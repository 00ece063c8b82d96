"""What every benchmark shares: sides in turns, their statistics, a JSON file and a Markdown table.

A comparison has sides (benchmarks/side.py) that do the same work on the same weights. They start
one after another, so that none compiles while another runs; a side whose check differs from that of
the first one is left out, as is one that fails, and the table says so. Then they take turns, in an
order that alternates, so that a slow phase of the machine affects all of them. Ratios are those of
the medians, to the first side: above 1 the first side is the faster one.

What the machine itself can do, matrix products and copies of memory, is measured in the same run
(benchmarks/machine.py).
"""

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.side import Side, SideError
from jaxformer.atomic import atomic_write
from jaxformer.planning.hardware import peak_flops
from jaxformer.units import size

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "torch", "transformers")
LOSS_BOUNDS = {"float32": 1e-4, "bfloat16": 2e-2}
"""Of the relative difference of two losses of the same weights, by the type of the products."""
SAME_TOKENS = {"float32": 0.95, "bfloat16": 0.5}
"""Least share of equal tokens: rounding decides between two that are nearly as likely, and what
follows then differs."""


class Entrant(NamedTuple):
    """A side before it is started."""

    name: str
    build: str
    """`MODULE:FUNCTION` of its work."""
    settings: Mapping[str, Any]
    environment: Mapping[str, str] = {}


Agree = Callable[[Sequence[float], Sequence[float]], str]
"""From what two sides found: how they differ, or an empty word."""


def same_loss(dtype: str) -> Agree:
    """Whether the losses of the first step are equal up to the rounding of the type."""

    def agree(theirs: Sequence[float], ours: Sequence[float]) -> str:
        error = abs(theirs[0] - ours[0]) / abs(ours[0])
        return "" if error <= LOSS_BOUNDS[dtype] else f"loss {theirs[0]:.6f}, not {ours[0]:.6f}"

    return agree


def same_tokens(dtype: str) -> Agree:
    """Whether as many tokens are equal as rounding allows."""

    def agree(theirs: Sequence[float], ours: Sequence[float]) -> str:
        equal = [a == b for a, b in zip(theirs, ours, strict=False)]
        share = sum(equal) / max(len(theirs), len(ours))
        return "" if share >= SAME_TOKENS[dtype] else f"{share:.0%} of the tokens are the same"

    return agree


def compare(
    case: str, entrants: Iterable[Entrant], repetitions: int, agree: Agree | None, **about: Any
) -> dict[str, Any]:
    """Start the sides, check them, let them take turns; the case as the JSON file holds it."""
    sides: list[Side] = []
    rows: dict[str, dict[str, Any]] = {}
    try:
        for entrant in entrants:
            row = rows[entrant.name] = {"side": entrant.name}
            try:
                side = Side(entrant.name, entrant.build, entrant.settings, **entrant.environment)
            except SideError as error:
                row["error"] = str(error)[:300]
                continue
            if sides and agree and (fault := agree(side.about["check"], sides[0].about["check"])):
                row["error"] = fault
                side.kill()
                continue
            row |= {name: value for name, value in side.about.items() if name != "check"}
            sides.append(side)
        for repetition in range(repetitions):
            for side in [*reversed(sides)] if repetition % 2 else [*sides]:
                try:
                    _add(rows[side.name].setdefault("seconds", {}), side.repeat())
                except SideError as error:
                    rows[side.name]["error"] = str(error)[:300]
                    sides.remove(side)
        for side in [*sides]:
            rows[side.name] |= side.end()
            sides.remove(side)
    finally:
        for side in sides:
            side.kill()
    return {"case": case, **about, "repetitions": repetitions, "sides": list(rows.values())}


def _add(seconds: dict[str, list[float]], more: Mapping[str, float]) -> None:
    for part, value in more.items():
        seconds.setdefault(part, []).append(value)


class Benchmark:
    """The cases of one run of a benchmark; its files are written after each of them."""

    def __init__(self, name: str, words: argparse.Namespace):
        self.name, self.words = name, words
        self.results: dict[str, Any] = {
            "benchmark": name,
            "command": _command(),
            "about": about_machine(),
            "cases": [],
        }
        words.output.mkdir(parents=True, exist_ok=True)

    def compare(
        self, case: str, entrants: Iterable[Entrant], agree: Agree | None = None, **about: Any
    ) -> None:
        """Measure a case and write down all that is there so far."""
        print(f"{self.name}: {case}", file=sys.stderr, flush=True)
        found = compare(case, entrants, self.words.repetitions, agree, **about)
        self.results["cases"].append(found)
        for suffix, text in (
            ("json", json.dumps(self.results, indent=1)),
            ("md", table(self.results)),
        ):
            with atomic_write(self.words.output / f"{self.name}.{suffix}") as file:
                file.write(text.encode() + b"\n")

    def end(self) -> int:
        """Print the table; the exit status is 1 if a side was left out."""
        print(table(self.results))
        failed = [row for case in self.results["cases"] for row in case["sides"] if "error" in row]
        return 1 if failed else 0


def parser(description: str | None, repetitions: int) -> argparse.ArgumentParser:
    """The flags of all benchmarks."""
    flags = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_argument(
        "--repetitions", type=int, default=repetitions, help=f"of each side ({repetitions})"
    )
    flags.add_argument(
        "--output", type=Path, default=RESULTS, help="directory of the files (benchmarks/results)"
    )
    return flags


def choose(flags: argparse.ArgumentParser, what: str, names: Iterable[str]) -> None:
    """A flag that measures some cases only."""
    names = tuple(names)
    flags.add_argument(f"--{what}", nargs="+", choices=names, default=names)


def about_machine() -> dict[str, Any]:
    """Versions, and what else was going on."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        **versions,
        "cpus": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
    }


def _command() -> str:
    spec = sys.modules["__main__"].__spec__  # None of a file that is no module
    return " ".join(["python -m", spec.name if spec else sys.argv[0], *sys.argv[1:]])


class Figures(NamedTuple):
    """Statistics of one part of a side's time, in seconds."""

    median: float
    fastest: float
    slowest: float

    @classmethod
    def of(cls, row: Mapping[str, Any], part: str = "all") -> "Figures":
        """Of a row of a case."""
        values = row["seconds"][part]
        return cls(statistics.median(values), min(values), max(values))


def ratio(row: Mapping[str, Any], first: Mapping[str, Any], part: str = "all") -> float:
    """Median of a side over that of the first."""
    return Figures.of(row, part).median / Figures.of(first, part).median


def table(results: Mapping[str, Any]) -> str:
    """The results in Markdown: a line about the machine, then a table of all cases and parts."""
    about = ", ".join(f"{name} {value}" for name, value in results["about"].items())
    devices = dict.fromkeys(
        row["device"] for case in results["cases"] for row in case["sides"] if "device" in row
    )
    lines = [
        f"`{results['command']}` on {' and '.join(devices)} ({about}; load at the start)",
        "",
        "| case | side | ms | fastest - slowest | times as long | first call, s | memory | |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for case in results["cases"]:
        first = next((row for row in case["sides"] if "error" not in row), None)
        for row in case["sides"]:
            if first is None or "error" in row:
                lines.append(
                    f"| {case['case']} | {row['side']} | left out: {row['error']} | | | | | |"
                )
                continue
            for part in row["seconds"]:
                lines.append(_line(case, row, first, part))
    return "\n".join(lines)


def _line(
    case: Mapping[str, Any], row: Mapping[str, Any], first: Mapping[str, Any], part: str
) -> str:
    median, fastest, slowest = Figures.of(row, part)
    name = case["case"] if part == "all" else f"{case['case']}, {part}"
    cells = (
        name,
        row["side"],
        f"{1e3 * median:.4g}",
        f"{1e3 * fastest:.4g} - {1e3 * slowest:.4g}",
        f"{ratio(row, first, part):.2f}" if part in first["seconds"] else "",
        f"{row['first_seconds']:.1f}",
        size(row["peak_bytes"]),
        rate(case, row, median, part),
    )
    return f"| {' | '.join(cells)} |"


def rate(case: Mapping[str, Any], row: Mapping[str, Any], seconds: float, part: str) -> str:
    """What the case counts, per second, and its share of the peak of a GPU that is known."""
    counts = case.get("per_second", {}).get(part, {})
    rates = [f"{count / seconds:,.4g} {what}/s" for what, count in counts.items()]
    is_bfloat16 = case.get("model_flops") and case["settings"]["config"]["dtype"] == "bfloat16"
    if is_bfloat16 and (peak := peak_flops(row["device"], "bfloat16")):
        rates.append(f"MFU {case['model_flops'] / seconds / peak:.1%}")
    return ", ".join(rates)
