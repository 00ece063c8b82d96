"""Resuming a run: its newest checkpoint, and what must be the same for it to go on to the last bit.

A checkpoint's metadata hold the configuration, hashes of data and tokenizer, and what else the
numbers depend on. A difference ends the run before its first step, unless it is one of versions.
"""

import dataclasses
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxformer import checkpoint
from jaxformer.config import RunConfig, RunOptions
from jaxformer.errors import UserError
from jaxformer.monitor.metrics import read_metrics
from jaxformer.run import directory
from jaxformer.run.initial import initial_state
from jaxformer.runtime import distributed, jax_setup
from jaxformer.tasks.config_io import config_to_json, load_config
from jaxformer.tasks.kinds import kind_of
from jaxformer.tasks.program import Program
from jaxformer.tasks.task import Task
from jaxformer.terminal import say
from jaxformer.training.step import TrainState

CONTINUES = "the run continues, but may differ in its last bits"
ADVICE = "resume with the flags it was started with (more --steps extend it)"


class Start(NamedTuple):
    """Where a run begins or goes on."""

    step: int
    """Steps done."""
    steps: int
    """Steps of the schedule that led here, fewer than the config's if the run is extended."""
    origin: str = ""
    """A line about the weights of a run that begins with others than random ones."""


def metadata_of(task: Task, program: Program) -> dict[str, Any]:
    """What every checkpoint of a run says beside its step."""
    return {
        "config": config_to_json(task.spec.config),
        "data": task.data.fingerprint,
        "tokenizer": task.data.tokenizer.fingerprint,
        "text": task.description[0],
        "lost": task.data.lost,
        "rows": task.row_multiple,
        "objective": task.spec.own_objective,
        "settings": jax_setup.settings(*jax_setup.OF_THE_RUN),
        "keys": {"dropout": program.dropout_key.tolist()},
        "versions": {
            "jax": jax.__version__,
            "numpy": np.__version__,
            **jax_setup.settings(*jax_setup.OF_THE_COMPILER),
        },
    }


def restore(
    task: Task, program: Program, metadata: dict[str, Any], options: RunOptions
) -> tuple[TrainState, Start]:
    """The state of the newest checkpoint that verifies, or the first one if there is none.

    Raises:
        UserError: no checkpoint can be used, the run was made with other flags, data or settings of
            JAX, its checkpoints are lost, or the weights that it begins with cannot be read.
    """
    config = task.spec.config
    checkpoints = options.run_dir / directory.CHECKPOINTS
    alike = [metadata, options.stop_after, options.max_skipped]
    if not (options.resume and checkpoint.all_steps(checkpoints)):
        steps = config.steps
        if options.resume:
            check_nothing_lost(config, options.run_dir)
            steps = load_config(options.run_dir / directory.CONFIG).steps
        distributed.assert_same_on_all_processes(json.dumps([*alike, 0]))
        state, origin = initial_state(task, program)
        return state, Start(0, steps, origin)
    abstract = checkpoint.split(program.state)
    found = checkpoint.read_metadata(checkpoints, items=abstract.keys())
    distributed.assert_same_on_all_processes(json.dumps([*alike, found.step]))
    made_with = directory.saved_config(found)
    directory.check_config(config, made_with, options.run_dir, ADVICE)
    check_metadata(options.run_dir, config.data, found.metadata, metadata)
    changed = other_versions(found.metadata, metadata)
    if made_with.model.scan_layers != config.model.scan_layers:
        changed.append(other_layers(made_with.model.scan_layers))
    for line in [*found.skipped, *changed]:
        if distributed.is_first():
            say(line, sys.stderr)
    state = checkpoint.join(checkpoint.load(checkpoints, found, abstract))
    return state, Start(found.step, made_with.steps)


def introduction(task: Task, start: Start, resumed: bool) -> Iterator[str]:
    """Lines about where a run begins or goes on, and what more steps do."""
    config, step = task.spec.config, start.step
    if config.steps > start.steps:
        yield extension(task, start)
    if resumed and step == 0:
        yield "the run has no checkpoint yet: it starts from scratch"
    elif resumed:
        done = step >= config.steps
        left = ": nothing is left to do, unless more --steps extend the run" if done else ""
        yield f"resumed from step {step}{left}"
    if start.origin:
        yield start.origin


def extension(task: Task, start: Start) -> str:
    """What the schedule does in a run that is extended."""
    config, kind = task.spec.config, kind_of(task.spec.config)
    made_with = dataclasses.replace(config, steps=start.steps)
    before = kind.spec(made_with, task.data.tokenizer.vocab_size).optimizer
    rates = [f"{rule.learning_rate(start.step):.2e}" for rule in (task.spec.optimizer, before)]
    same = "as before" if rates[0] == rates[1] else f"instead of {rates[1]}"
    return (
        f"extended from {start.steps:,} to {config.steps:,} steps: {kind.extended(config)}; the "
        f"learning rate at step {start.step + 1:,} is {rates[0]} {same}"
    )


def check_nothing_lost(config: RunConfig, run_dir: Path) -> None:
    """Refuse to restart a run without checkpoints, unless it was killed before its first one.

    A run that saves every n steps has its first checkpoint before it begins step 2n + 1.
    """
    metrics, checkpoints = run_dir / directory.METRICS, run_dir / directory.CHECKPOINTS
    done = max((row["step"] for row in read_metrics(metrics)), default=0) if metrics.exists() else 0
    if done and (not checkpoints.is_dir() or done > 2 * config.checkpoint.every):
        raise UserError(
            f"{checkpoints} holds no checkpoint, though the run has done {done} steps: put them "
            "back, or start a new run in another --run-dir"
        )


def check_metadata(
    run_dir: Path, data: Any, saved: Mapping[str, Any], now: Mapping[str, Any]
) -> None:
    """Refuse to continue from a checkpoint of other data, objective, settings of JAX or keys.

    Args:
        run_dir: the run's directory.
        data: the settings of its data.
        saved: the metadata of the checkpoint.
        now: those that the next one will have.

    Raises:
        UserError: naming what differs, and what to do.
    """
    known = saved.get("settings", {})
    changed = [
        f"{name} is {value} (the run has {known[name]})"
        for name, value in now["settings"].items()
        if known.get(name, value) != value
    ]
    if changed:
        raise UserError(
            f"{run_dir} cannot be resumed, its numbers would differ: {'; '.join(changed)}: set "
            "what the run was started with"
        )
    lowered, lowers = (values.get("objective") or "its kind's own" for values in (saved, now))
    if "objective" in saved and lowered != lowers:  # earlier versions knew but those of the kinds
        raise UserError(
            f"{run_dir} cannot be resumed, its objectives differ: the run has {lowered}, here is "
            f"{lowers}: pass the objective it was started with"
        )
    if saved.get("data") != now["data"]:
        changed_data = directory.changed_data(data, saved.get("text"), now["text"])
        raise UserError(
            f"{run_dir} cannot be resumed, its data differ: the text or its tokenizer "
            f"{changed_data}, or start a new run"
        )
    for name, advice in (
        ("rows", "the batches would differ: use a mesh of as many devices"),
        ("keys", "random keys differ in this version: use the jax version it was started with"),
    ):
        if saved.get(name) != now[name]:
            raise UserError(
                f"{run_dir} cannot be resumed, its {name} differ: the run has {saved.get(name)}, "
                f"here is {now[name]}; {advice}"
            )


def other_versions(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """A line if other versions of jax or numpy made the checkpoint: it is used nevertheless."""
    made_with, here = saved.get("versions", {}), now["versions"]
    changed = [
        f"{name} {made_with.get(name)} (here {version})"
        for name, version in here.items()
        if made_with.get(name, version) != version
    ]
    if not changed:
        return []
    return [f"made with {' and '.join(changed)}: {CONTINUES}"]


def other_layers(were_scanned: bool) -> str:
    """A line if the checkpoint's layers were scanned and now are not, or the reverse."""
    return f"made with {'' if were_scanned else 'no '}--model.scan-layers: {CONTINUES}"
