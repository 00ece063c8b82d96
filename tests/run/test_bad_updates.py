"""Whole runs with losses that are not finite, with spikes, with a validation that is no number."""

import dataclasses
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from jaxformer import checkpoint
from jaxformer.config import CheckpointConfig, LanguageConfig, RunOptions, SpikeConfig
from jaxformer.errors import UserError
from jaxformer.evaluation.loss import Evaluation
from jaxformer.monitor.metrics import read_metrics
from jaxformer.run import loop
from jaxformer.run.loop import train
from tests.run.tiny import one_device, spoil, tiny_config, whole_state


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LanguageConfig:
    monkeypatch.setenv("JAXFORMER_CACHE", str(tmp_path / "cache"))
    one_device(monkeypatch)
    return tiny_config(tmp_path)


def not_a_number(total: jax.Array, bad: jax.Array) -> jax.Array:
    return total * jnp.where(bad, jnp.nan, 1.0)


def thousandfold(total: jax.Array, bad: jax.Array) -> jax.Array:
    return total * jnp.where(bad, 1000.0, 1.0)


def rows(run_dir: Path) -> list[tuple]:
    """What is equal in every rerun, one tuple a training step."""
    return [
        (row["step"], str(row["loss"]), "skipped" in row, "spike" in row)
        for row in read_metrics(run_dir / "metrics.jsonl")
        if row["split"] == "train"
    ]


def test_bad_updates_are_skipped_counted_and_logged_and_resume_as_if_uninterrupted(
    config: LanguageConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    spoil(monkeypatch, {5, 6, 9}, not_a_number)
    train(config, RunOptions(run_dir=tmp_path / "whole"))
    out = capsys.readouterr().out
    assert "step 5 (batch 4): loss nan, gradient norm nan: update skipped, 1 in a row" in out
    assert "step 6 (batch 5): loss nan, gradient norm nan: update skipped, 2 in a row" in out
    assert "step 9 (batch 8): loss nan, gradient norm nan: update skipped, 1 in a row" in out
    assert out.count("skipped") == 3
    train(config, RunOptions(run_dir=tmp_path / "parts", stop_after=5))
    train(config, RunOptions(run_dir=tmp_path / "parts", resume=True))
    assert rows(tmp_path / "whole") == rows(tmp_path / "parts")
    assert [row[0] for row in rows(tmp_path / "whole") if row[2]] == [5, 6, 9]
    ends = [whole_state(config, tmp_path / run, 12) for run in ("whole", "parts")]
    assert checkpoint.state_hash(ends[0]) == checkpoint.state_hash(ends[1])
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(ends[0]))


def test_too_many_in_a_row_end_the_run_and_no_bad_state_is_saved(
    config: LanguageConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, {3, *range(5, 13)}, not_a_number)
    config = dataclasses.replace(config, checkpoint=CheckpointConfig(every=2, keep=9))
    options = RunOptions(run_dir=tmp_path / "run", max_skipped=4)
    end = r"4 updates in a row were skipped: the last good step is 4, the first bad batch 4,"
    with pytest.raises(UserError, match=end):
        train(config, options)
    assert [row[0] for row in rows(tmp_path / "run") if row[2]] == [3, 5, 6, 7, 8]
    # Step 6 was due during the bad ones: it holds the parameters of step 4. Step 8 is not saved.
    assert checkpoint.steps(tmp_path / "run" / "checkpoints") == [2, 4, 6]
    good, during = (whole_state(config, tmp_path / "run", step) for step in (4, 6))
    assert checkpoint.state_hash(good.params) == checkpoint.state_hash(during.params)
    assert (int(good.step), int(during.step)) == (4, 6)
    # A resumed run continues the count of the skipped steps 5 and 6.
    with pytest.raises(UserError, match=end):
        train(config, dataclasses.replace(options, resume=True))
    assert [row[0] for row in rows(tmp_path / "run") if row[2]] == [3, 5, 6, 7, 8]
    train(config, dataclasses.replace(options, resume=True, max_skipped=9))


def test_few_lines_of_metrics_lose_no_skipped_update(
    config: LanguageConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, {3, 5, 8, 9}, not_a_number)
    options = RunOptions(run_dir=tmp_path / "whole", log_every=4, max_skipped=2)
    parts = dataclasses.replace(options, run_dir=tmp_path / "parts")
    end = r"2 updates in a row were skipped: the last good step is 7, the first bad batch 7,"
    with pytest.raises(UserError, match=end):  # 3 and 5, and what is resumed after 8, are no row
        train(config, options)
    for stop in (3, 6, 7, 8):
        outcome = train(config, dataclasses.replace(parts, stop_after=stop, resume=stop > 3))
        assert outcome.step == stop
    with pytest.raises(UserError, match=end):
        train(config, dataclasses.replace(parts, resume=True))
    assert rows(tmp_path / "parts") == rows(tmp_path / "whole")
    assert [row[0] for row in rows(tmp_path / "whole")] == [3, 4, 5, 8, 9]


@pytest.mark.parametrize("skip", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_spike_is_logged_and_by_option_skipped(
    config: LanguageConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    skip: bool,
) -> None:
    spoil(monkeypatch, {75, 78}, thousandfold)
    config = dataclasses.replace(
        config,
        steps=80,
        checkpoint=CheckpointConfig(every=76, keep=3),
        spikes=SpikeConfig(deviations=50.0, skip=skip),
    )
    train(config, RunOptions(run_dir=tmp_path / "whole"))
    out = capsys.readouterr().out
    ending = ": update skipped, 1 in a row\n" if skip else "\n"
    (line,) = (line for line in out.splitlines(keepends=True) if line.startswith("step 75 ("))
    assert "a spike above" in line
    assert line.endswith(ending)
    train(config, RunOptions(run_dir=tmp_path / "parts", stop_after=76))
    train(config, RunOptions(run_dir=tmp_path / "parts", resume=True))
    assert rows(tmp_path / "parts") == rows(tmp_path / "whole")
    marks = {row[0]: row[2:] for row in rows(tmp_path / "whole") if any(row[2:])}
    # A spike that is not skipped enters the mean: after the first, the second is none.
    assert marks == ({75: (True, True), 78: (True, True)} if skip else {75: (False, True)})
    ends = {
        checkpoint.state_hash(whole_state(config, tmp_path / run, 80)) for run in ("whole", "parts")
    }
    assert len(ends) == 1


def test_a_validation_that_is_not_finite_is_logged_and_never_the_best(
    config: LanguageConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    found = iter([math.nan, 3.0, math.inf, 4.0, 5.0, 6.0])
    monkeypatch.setattr(loop, "evaluate", lambda *_: Evaluation(next(found), num_tokens=64))
    config = dataclasses.replace(
        config, steps=6, eval_every=1, checkpoint=CheckpointConfig(every=1, keep=1)
    )
    outcome = train(config, RunOptions(run_dir=tmp_path / "run"))
    assert outcome.finished
    out = capsys.readouterr().out
    for step, loss in ((1, "nan"), (3, "inf")):
        assert (
            f"step {step}/6 · validation loss {loss} · no finite number, "
            "so this step is never the best checkpoint · "
        ) in out
    assert checkpoint.steps(tmp_path / "run" / "checkpoints") == [2, 6]
