"""What runs have measured, side by side: from their metrics and settings alone, without jax."""

import dataclasses
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxformer.config import RunConfig
from jaxformer.errors import UserError
from jaxformer.monitor.metrics import read_metrics
from jaxformer.monitor.plots import end_of_mean
from jaxformer.tasks.config_io import config_to_json, load_config


@dataclasses.dataclass(frozen=True)
class RunMetrics:
    """What a run has measured so far; None is what it has not."""

    steps: int
    """Optimizer steps done."""
    planned: int | None
    """Optimizer steps that its configuration asks for."""
    training_loss: float | None
    """Nats per token at the last step whose loss is finite: the running mean that `plot` draws."""
    not_finite_from: int | None
    """The step from which no training loss is finite."""
    validation_loss: float | None
    """Nats per token, the last one."""
    validation_step: int | None
    best_validation_loss: float | None
    best_validation_step: int | None
    tokens_per_second: float | None
    """Median over the steps."""
    peak_memory_bytes: int | None
    seconds: float | None
    """Time of all steps, without pauses to validate and save; of a step that was not timed, the
    median."""


def read_run(run: Path) -> tuple[RunMetrics, RunConfig | None]:
    """What the run of a directory has measured, and its configuration.

    A run that has only begun has no metrics yet; a directory with metrics alone no configuration.

    Raises:
        UserError: when it is no run's directory, or a file of it is damaged.
    """
    metrics, config = run / "metrics.jsonl", run / "config.json"
    if not (metrics.is_file() or config.is_file()):
        raise UserError(
            f"{run} is not a run, it has no {metrics.name} or {config.name}: name the --run-dir of "
            "a training run"
        )
    made_with = load_config(config) if config.is_file() else None
    rows = read_metrics(metrics) if metrics.is_file() else []
    return summarise_metrics(rows, None if made_with is None else made_with.steps), made_with


def summarise_metrics(rows: Sequence[Mapping[str, Any]], planned: int | None) -> RunMetrics:
    """The summary of the lines of metrics.jsonl."""
    train = [row for row in rows if row["split"] == "train"]
    losses = np.array([row["loss"] for row in train], float)
    mean, not_finite_from = end_of_mean(np.array([row["step"] for row in train], int), losses)
    val = [row for row in rows if row["split"] == "val"]
    best = min((row for row in val if math.isfinite(row["loss"])), key=_loss, default=None)
    timed, speeds = _column(train, "step_seconds"), _column(train, "tokens_per_second")
    untimed = len(train) - len(timed)
    return RunMetrics(
        steps=max((row["step"] for row in rows), default=0),
        planned=planned,
        training_loss=mean,
        not_finite_from=not_finite_from,
        validation_loss=val[-1]["loss"] if val else None,
        validation_step=val[-1]["step"] if val else None,
        best_validation_loss=best["loss"] if best else None,
        best_validation_step=best["step"] if best else None,
        tokens_per_second=statistics.median(speeds) if speeds else None,
        peak_memory_bytes=int(max(_column(train, "memory_bytes"), default=0)) or None,
        seconds=sum(timed) + untimed * statistics.median(timed) if timed else None,
    )


def differing_settings(configs: Sequence[RunConfig | None]) -> dict[str, list[Any]]:
    """The settings that are not the same in all configurations: by flag, the value of each.

    None stands for a setting that a configuration does not have, and for a run without one.
    """
    settings = [{} if config is None else _settings(config) for config in configs]
    names = dict.fromkeys(name for values in settings for name in values)
    return {
        name: [values.get(name) for values in settings]
        for name in names
        if len({json.dumps(values.get(name)) for values in settings if values}) > 1
    }


def _settings(config: RunConfig) -> dict[str, Any]:
    values = config_to_json(config)
    return {"kind": values.pop("kind"), **_flat(values)}


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        name = prefix + name.replace("_", "-")
        flat |= _flat(value, f"{name}.") if isinstance(value, dict) else {f"--{name}": value}
    return flat


def _loss(row: Mapping[str, Any]) -> float:
    return row["loss"]


def _column(rows: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    return [row[name] for row in rows if name in row and math.isfinite(row[name])]
