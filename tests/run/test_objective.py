"""`train(..., objective=...)`: steps lower it, validation is the usual loss, resume knows it."""

import functools
import shutil
from pathlib import Path

import jax
import pytest

from jaxformer import checkpoint
from jaxformer.config import RunOptions
from jaxformer.errors import UserError
from jaxformer.monitor.metrics import read_metrics
from jaxformer.run import resume
from jaxformer.run.loop import train
from jaxformer.training.objectives import next_token
from tests.run.tiny import one_device, tiny_config
from tests.states import snapshot


def scaled(model, batch, dropout_key, scale=3.0):
    """`scale` times the usual loss."""
    loss, count = next_token(model, batch, dropout_key)
    return scale * loss, count


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The first steps of two runs, one with the usual loss and one with its triple."""
    place = tmp_path_factory.mktemp("objective")
    config = tiny_config(place, steps=3, eval_every=1)
    with pytest.MonkeyPatch.context() as patch:
        one_device(patch)
        patch.setenv("JAXFORMER_CACHE", str(place / "cache"))
        train(config, RunOptions(run_dir=place / "plain", stop_after=1))
        train(config, RunOptions(run_dir=place / "own", stop_after=1), scaled)
        yield config, place


@pytest.fixture
def own(runs, tmp_path):
    """The configuration, and a copy of the run with the own loss."""
    config, place = runs
    return config, Path(shutil.copytree(place / "own", tmp_path / "own"))


def rows(run_dir: Path, split: str) -> list[dict]:
    return [row for row in read_metrics(run_dir / "metrics.jsonl") if row["split"] == split]


def test_the_steps_lower_it_and_validation_is_the_usual_loss(runs):
    _, place = runs
    (plain,), (own,) = rows(place / "plain", "train"), rows(place / "own", "train")
    assert own["loss"] == pytest.approx(3 * plain["loss"])
    assert own["grad_norm"] == pytest.approx(3 * plain["grad_norm"])
    (validated,) = rows(place / "own", "val")
    (usual,) = rows(place / "plain", "val")  # Adam's first step does not depend on the scale
    assert validated["loss"] == pytest.approx(usual["loss"], rel=1e-3)


def test_a_run_is_resumed_with_the_objective_it_was_started_with(own):
    config, run_dir = own
    outcome = train(config, RunOptions(run_dir=run_dir, resume=True), functools.partial(scaled))
    assert outcome.finished
    assert checkpoint.read_metadata(run_dir / "checkpoints").metadata["objective"] == "scaled"


@pytest.mark.parametrize(
    ("objective", "line"),
    [
        (None, "the run has scaled, here is its kind's own"),
        (next_token, "the run has scaled, here is next_token"),
    ],
)
def test_another_objective_is_refused_at_resume(own, objective, line):
    config, run_dir = own
    before = snapshot(run_dir)
    with pytest.raises(UserError, match=line) as refusal:
        train(config, RunOptions(run_dir=run_dir, resume=True), objective)
    assert "\n" not in str(refusal.value)
    assert snapshot(run_dir) == before


def test_an_own_objective_is_refused_at_resume_of_a_usual_run(runs, tmp_path):
    config, place = runs
    run_dir = Path(shutil.copytree(place / "plain", tmp_path / "plain"))
    with pytest.raises(UserError, match="the run has its kind's own, here is scaled"):
        train(config, RunOptions(run_dir=run_dir, resume=True), scaled)


def test_checkpoints_of_earlier_versions_do_not_say_it():
    saved = {"data": "0f", "rows": None, "keys": {}}
    here = {**saved, "settings": {}, "objective": "scaled"}
    resume.check_metadata(Path("run"), None, saved, here)
    resume.check_metadata(Path("run"), None, saved, here | {"objective": None})


@pytest.mark.parametrize(
    "wrong",
    [
        lambda loss, count: loss / count,
        lambda loss, count: (loss, 1.0 * count),
        lambda loss, count: (count, count),
        lambda loss, count: (jax.numpy.ones(2), count),
        lambda loss, count: (loss, count, count),
    ],
)
def test_what_is_no_sum_and_number_is_refused_before_the_run_begins(runs, tmp_path, wrong):
    def objective(model, batch, dropout_key):
        return wrong(*next_token(model, batch, dropout_key))

    config, _ = runs
    with pytest.raises(UserError, match=r"objective .*objective returns .*summed.*number"):
        train(config, RunOptions(run_dir=tmp_path / "run"), objective)
    assert not (tmp_path / "run").exists()
