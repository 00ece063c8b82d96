"""A run that is given more steps: as if the rest had been taken by the longer schedule's step."""

import dataclasses
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from jaxformer import checkpoint
from jaxformer.config import (
    CheckpointConfig,
    OptimizerConfig,
    RunConfig,
    RunOptions,
)
from jaxformer.errors import UserError
from jaxformer.monitor.metrics import read_metrics
from jaxformer.run import directory
from jaxformer.run.load import load_run
from jaxformer.run.loop import train
from jaxformer.sharding.mesh import shard_batch
from jaxformer.tasks.config_io import load_config
from tests.run import tiny

HAD, HAS = 3, 7


@pytest.fixture(scope="module", params=["gpt", pytest.param("transformer", marks=pytest.mark.slow)])
def finished(request, tmp_path_factory) -> Iterator[tuple[RunConfig, Path]]:
    """A run of three steps, and its configuration as it was asked for."""
    place = tmp_path_factory.mktemp(request.param)
    rule = OptimizerConfig(warmup_steps=1)
    text = tiny.tiny_config(place, optimizer=rule) if request.param == "gpt" else tiny.PAIRS
    every = CheckpointConfig(every=2, keep=3)
    config = dataclasses.replace(text, steps=HAD, eval_every=2, checkpoint=every)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXFORMER_CACHE", str(place / "cache"))
        tiny.one_device(patch)
        train(config, RunOptions(run_dir=place / "run"))
        yield config, place / "run"


def test_an_extended_run_is_the_old_state_and_the_new_schedule(finished, tmp_path, capsys):
    config, run_dir = finished
    config = dataclasses.replace(config, steps=HAS)
    extended, halves = (shutil.copytree(run_dir, tmp_path / name) for name in ("whole", "halves"))
    outcome = train(config, RunOptions(run_dir=extended, resume=True))
    assert (outcome.step, outcome.finished) == (HAS, True)
    said = capsys.readouterr().out

    task, program = tiny.prepared(config)
    state = tiny.state_of(program, run_dir, HAD)
    for step in range(HAD, HAS):
        state, _ = program.train_step(state, shard_batch(task.batches[step], program.rows))
    expected = checkpoint.state_hash(state)
    assert checkpoint.state_hash(tiny.state_of(program, extended, HAS)) == expected

    # Stopped on the way and resumed with the run's own flags.
    train(config, RunOptions(run_dir=halves, resume=True, stop_after=HAD + 1))
    own = load_config(halves / "config.json")
    assert own == load_config(extended / "config.json")
    assert own.steps == HAS
    assert load_run(halves, step=2).step == 2, "a checkpoint of the shorter schedule"
    capsys.readouterr()
    train(own, RunOptions(run_dir=halves, resume=True))
    assert "extended" not in capsys.readouterr().out
    assert checkpoint.state_hash(tiny.state_of(program, halves, HAS)) == expected
    losses = [
        [(row["step"], row["split"], row["loss"]) for row in read_metrics(run / "metrics.jsonl")]
        for run in (extended, halves)
    ]
    assert losses[0] == losses[1]

    (line,) = (line for line in said.splitlines() if line.startswith("extended"))
    had, has = (tiny.prepared(dataclasses.replace(config, steps=n))[0].spec for n in (HAD, HAS))
    before, now = (f"{spec.optimizer.learning_rate(HAD):.2e}" for spec in (had, has))
    assert f"from {HAD} to {HAS} steps" in line
    if config.kind == "gpt":
        assert f"the cosine now ends at step {HAS};" in line
        assert line.endswith(f"the learning rate at step {HAD + 1} is {now} instead of {before}")
        assert now != before
    else:
        assert "2017 does not depend on the number of steps" in line
        assert line.endswith(f"the learning rate at step {HAD + 1} is {now} as before")


def test_killed_before_its_next_checkpoint_it_goes_on_extended(
    finished, tmp_path, monkeypatch, capsys
):
    config, run_dir = finished[0], shutil.copytree(finished[1], tmp_path / "run")
    longer = dataclasses.replace(config, steps=HAS)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(directory, "checkpoint_writer", killed)
        with pytest.raises(KeyboardInterrupt):
            train(longer, RunOptions(run_dir=run_dir, resume=True))
    own = load_config(run_dir / "config.json")
    assert own.steps == HAS
    assert load_run(run_dir).step == HAD
    outcome = train(own, RunOptions(run_dir=run_dir, resume=True, stop_after=HAD + 1))
    assert outcome.config.steps == HAS
    assert f"extended from {HAD} to {HAS} steps" in capsys.readouterr().out
    rates = [row.get("learning_rate") for row in read_metrics(run_dir / "metrics.jsonl")]
    expected = float(tiny.prepared(longer)[0].spec.optimizer.learning_rate(HAD))
    assert [rate for rate in rates if rate is not None][HAD:] == [pytest.approx(expected)]


def test_fewer_steps_are_refused_and_the_run_stays_as_it_was(finished, tmp_path):
    config, run_dir = finished[0], shutil.copytree(finished[1], tmp_path / "run")
    before = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
    fewer = dataclasses.replace(config, steps=HAD - 1)
    with pytest.raises(UserError, match=re.escape(f"--steps {HAD - 1} (the run has {HAD})")):
        train(fewer, RunOptions(run_dir=run_dir, resume=True))
    assert before == {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
