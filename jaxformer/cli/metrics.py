"""`jaxformer metrics RUN [RUN ...]`: what runs have measured and how they differ, side by side."""

import dataclasses
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jaxformer.cli.arguments import parse
from jaxformer.cli.outputs import json_output
from jaxformer.cli.runs import RunPaths, run_names
from jaxformer.terminal import cells, padded, width
from jaxformer.units import count, duration, size

if TYPE_CHECKING:  # numpy starts slowly: `--help` does without
    from jaxformer.monitor.run_metrics import RunMetrics

DESCRIPTION = (
    "Print what runs have measured so far, side by side, and the settings in which they differ. "
    "Losses are in nats per token: those of runs with different tokenizers cannot be compared."
)
UNKNOWN = "-"


@dataclasses.dataclass(frozen=True)
class MetricsArguments:
    """What `jaxformer metrics` is asked."""

    runs: RunPaths
    """Directories of the runs, finished or still going."""
    json: Path | None = None
    """File to write the measurements and the settings that differ to."""


def main(argv: Sequence[str]) -> int:
    """Print the table; the exit status is 0.

    Raises:
        UserError: when a directory is no run's, or a file of it is damaged.
    """
    arguments = parse(MetricsArguments, argv, "jaxformer metrics", DESCRIPTION)
    names = run_names(arguments.runs)
    from jaxformer.monitor.run_metrics import differing_settings, read_run

    found, configs = zip(*map(read_run, arguments.runs), strict=True)
    differing = differing_settings(configs)
    rows: dict[str, list[str]] = {"run": names}
    for metrics in found:
        for heading, cell in described(metrics).items():
            rows.setdefault(heading, []).append(cell)
    for flag, values in differing.items():
        rows[flag] = [UNKNOWN if value is None else str(value) for value in values]
    runs = [
        {"run": str(run), "name": name, **dataclasses.asdict(metrics)}
        for run, name, metrics in zip(arguments.runs, names, found, strict=True)
    ]
    with json_output(arguments.json) as write_json:
        write_json({"runs": runs, "differing": differing})
        print("\n".join(table(rows, width(sys.stdout, otherwise=110))))
    return 0


def described(metrics: "RunMetrics") -> dict[str, str]:
    """What a run has measured, in words."""
    planned = "" if metrics.planned is None else f" of {metrics.planned:,}"
    return {
        "steps": f"{metrics.steps:,}{planned}",
        "training loss (running mean)": _mean(metrics.training_loss, metrics.not_finite_from),
        "validation loss, last": _at(metrics.validation_loss, metrics.validation_step),
        "validation loss, best": _at(metrics.best_validation_loss, metrics.best_validation_step),
        "tokens/s, median": _said(metrics.tokens_per_second, count),
        "memory, peak": _said(metrics.peak_memory_bytes, size),
        "time of the steps": _said(metrics.seconds, duration),
    }


def table(rows: Mapping[str, Sequence[str]], room: int) -> Iterator[str]:
    """A column per run where all fit the columns of a terminal; else one run after the other."""
    columns: list[Sequence[str]] = [tuple(rows), *zip(*rows.values(), strict=True)]
    widths = [max(map(cells, column)) for column in columns]
    if sum(widths) + 2 * len(widths) - 2 <= room:
        for row in zip(*columns, strict=True):
            yield "  ".join(map(padded, row, widths)).rstrip()
        return
    for number, run in enumerate(columns[1:]):
        if number:
            yield ""
        for heading, cell in zip(rows, run, strict=True):
            yield f"{padded(heading, widths[0])}  {cell}"


def _said(value: float | None, form: Callable[[float], str]) -> str:
    return UNKNOWN if value is None else form(value)


def _loss(loss: float | None) -> str:
    return _said(loss, "{:.4f}".format)


def _mean(loss: float | None, not_finite_from: int | None) -> str:
    if not_finite_from is None:
        return _loss(loss)
    lost = f"not finite from step {not_finite_from:,}"
    return lost if loss is None else f"{_loss(loss)}, {lost}"


def _at(loss: float | None, step: int | None) -> str:
    return UNKNOWN if step is None else f"{_loss(loss)} at step {step:,}"
