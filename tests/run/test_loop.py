"""The training loop: resumed = uninterrupted, to the bit; nothing is lost, nothing overwritten."""

import dataclasses
import errno
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxformer import checkpoint
from jaxformer.batch import Batch
from jaxformer.config import (
    LanguageConfig,
    MeshConfig,
    RunOptions,
)
from jaxformer.errors import UserError
from jaxformer.monitor.metrics import read_metrics
from jaxformer.run import directory
from jaxformer.run.load import load_run
from jaxformer.run.loop import train
from jaxformer.sharding.mesh import make_mesh, shard_batch
from jaxformer.tasks.config_io import load_config
from jaxformer.tasks.language_modeling import language_spec
from jaxformer.tasks.program import build
from tests.run import forked, tiny
from tests.run.conftest import TEXT


def final_state(config: LanguageConfig, run_dir: Path):
    program = build(language_spec(config), make_mesh(config.mesh))
    items, found = checkpoint.restore(run_dir / "checkpoints", checkpoint.split(program.state))
    return checkpoint.join(items), found


def flags(config: LanguageConfig, run_dir: Path, steps: int) -> list[str]:
    """The command line that makes this configuration with the character-level recipe."""
    model = config.model
    return [
        *(sys.executable, "-m", "train.gpt_char", "--run-dir", str(run_dir)),
        *("--data.path", str(config.data.path), "--steps", str(steps), "--batch-size", "8"),
        *("--eval-every", "20", "--seed", "3", "--checkpoint.every", "15"),
        *("--model.context-length", str(model.context_length)),
        *("--model.width", str(model.width), "--model.num-heads", str(model.num_heads)),
        *("--model.mlp-width", str(model.mlp_width), "--model.num-layers", str(model.num_layers)),
        *("--model.dropout-rate", str(model.dropout_rate), "--optimizer.warmup-steps", "10"),
    ]


@pytest.mark.optimized
@pytest.mark.parametrize("half", [20, pytest.param(100, marks=pytest.mark.slow)])
def test_a_run_equals_its_half_and_a_new_process_and_the_rest(config, tmp_path, half):
    whole, halves, steps = tmp_path / "whole", tmp_path / "halves", 2 * half
    for words in (
        flags(config, whole, steps),
        [*flags(config, halves, steps), "--stop-after", str(half)],
        [*flags(config, halves, steps)[:5], "--resume"],  # the run knows its own flags
    ):
        forked.run(words[2], words[3:]).check_returncode()
    assert tiny.losses(halves) == tiny.losses(whole)
    assert [row[0] for row in tiny.losses(whole) if row[1] == "train"] == list(range(1, steps + 1))
    states = [checkpoint.read_metadata(run / "checkpoints") for run in (whole, halves)]
    assert [found.step for found in states] == [steps, steps]
    model = dataclasses.replace(config.model, vocab_size=len(set(TEXT)))
    resumed = dataclasses.replace(config, model=model, steps=steps)
    hashes = {checkpoint.state_hash(final_state(resumed, run)[0]) for run in (whole, halves)}
    assert len(hashes) == 1


@pytest.mark.usefixtures("drawn")
def test_a_run_leaves_what_a_run_directory_holds(divided, tmp_path, capsys):
    outcome = train(divided, RunOptions(run_dir=tmp_path / "run"))
    assert outcome.exit_status == 0
    names = {path.name for path in (tmp_path / "run").iterdir()} - {".lock"}
    assert names == {"config.json", "tokenizer.json", "metrics.jsonl", "checkpoints", "curves.png"}
    assert "compiled" not in capsys.readouterr().out
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert tiny.losses(tmp_path / "run")[0][2] > rows[-1]["loss"], "it learned nothing"
    measured = {"grad_norm", "learning_rate", "tokens_per_second", "step_seconds", "memory_bytes"}
    assert measured <= rows[2].keys()


def test_a_second_compilation_is_reported(config, tmp_path, capsys, monkeypatch):
    def train_step_without_placed_state(*args):
        program = build(*args)
        state = jax.tree.map(lambda leaf: np.asarray(leaf), program.fresh_state())
        batch = Batch(*(np.zeros((8, 16), kind) for kind in (np.int32, np.int32, bool)))
        program.train_step(state, batch)
        return program

    monkeypatch.setattr("jaxformer.run.loop.build", train_step_without_placed_state)
    train(dataclasses.replace(config, steps=2), RunOptions(run_dir=tmp_path / "run"))
    assert "compiled 2 times" in capsys.readouterr().out


def test_a_directory_that_holds_a_run_is_refused_and_unharmed(config, run_dir):
    before = {p: p.read_bytes() for p in run_dir.rglob("*") if p.is_file()}
    with pytest.raises(UserError, match=r"already holds a run.*--resume"):
        train(config, RunOptions(run_dir=run_dir, stop_after=2))
    assert before == {p: p.read_bytes() for p in run_dir.rglob("*") if p.is_file()}


def test_a_directory_that_another_process_trains_in_is_refused(config, run_dir):
    before = (run_dir / "metrics.jsonl").read_bytes()
    script = "import sys; from pathlib import Path\n"
    script += "from jaxformer.run.directory import locked\n"
    script += "with locked(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    words = [sys.executable, "-c", script, str(run_dir)]
    holder = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(UserError, match="by another process"):
        train(config, RunOptions(run_dir=run_dir, resume=True))
    holder.communicate()
    assert (run_dir / "metrics.jsonl").read_bytes() == before
    train(config, RunOptions(run_dir=run_dir, resume=True, stop_after=3))


def test_a_config_that_was_changed_by_hand_is_refused(config, run_dir):
    path = run_dir / "config.json"
    path.write_text(path.read_text().replace('"num_heads": 2', '"num_heads": 4'))
    model = dataclasses.replace(config.model, num_heads=4)
    options = RunOptions(run_dir=run_dir, resume=True)
    with pytest.raises(UserError, match=r"num-heads 4 \(the run has 2\)"):
        train(dataclasses.replace(config, model=model), options)
    with pytest.raises(UserError, match=r"num-heads 4 \(the run has 2\)"):
        load_run(run_dir)


def test_a_lost_tokenizer_comes_back_on_resume(config, run_dir):
    path = run_dir / "tokenizer.json"
    content = path.read_bytes()
    path.unlink()
    train(config, RunOptions(run_dir=run_dir, resume=True, stop_after=3))
    assert path.read_bytes() == content


def test_a_relative_text_is_found_from_elsewhere(config, place, tmp_path, monkeypatch):
    monkeypatch.chdir(place)
    near = dataclasses.replace(config, data=dataclasses.replace(config.data, path=Path("text.txt")))
    train(near, RunOptions(run_dir=tmp_path / "run", stop_after=2))
    monkeypatch.chdir("/")
    assert load_config(tmp_path / "run" / "config.json").data.path == config.data.path.resolve()


def test_float64_is_not_made_float32_silently(config, tmp_path):
    model = dataclasses.replace(config.model, dtype="float64")
    with pytest.raises(UserError, match="JAX_ENABLE_X64=1"):
        train(dataclasses.replace(config, model=model), RunOptions(run_dir=tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["a[1]", "lr[1e-3]/run", "gs:/bucket"])
def test_a_run_directory_that_cannot_hold_checkpoints_is_refused_at_once(config, tmp_path, name):
    with pytest.raises(UserError, match="--run-dir"):
        train(config, RunOptions(run_dir=tmp_path / name))
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["", "runs/.."])
def test_a_run_directory_that_is_the_directory_of_its_text_is_refused(
    config, tmp_path, monkeypatch, name
):
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, path=tmp_path))
    for run_dir in (tmp_path / name, Path(name)):
        with pytest.raises(UserError, match="--run-dir"):
            train(config, RunOptions(run_dir=run_dir))
    assert [path.name for path in tmp_path.iterdir()] == ["text.txt"]


def test_a_run_within_its_texts_is_resumed(config, tmp_path, monkeypatch):
    monkeypatch.setenv("JAXFORMER_CACHE", str(tmp_path / "cache"))
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    data = dataclasses.replace(config.data, path=tmp_path)
    config = dataclasses.replace(config, data=data)
    train(config, RunOptions(run_dir=tmp_path / "runs" / "x", stop_after=1))
    train(config, RunOptions(run_dir=tmp_path / "runs" / "y", stop_after=1))
    outcome = train(config, RunOptions(run_dir=tmp_path / "runs" / "x", resume=True, stop_after=2))
    assert outcome.step == 2


def test_a_text_too_short_to_validate_on_is_refused_before_the_run_begins(config, tmp_path):
    data = dataclasses.replace(config.data, val_fraction=1e-9)
    with pytest.raises(UserError, match=r"\b1 tokens.*--data.val-fraction"):
        train(dataclasses.replace(config, data=data), RunOptions(run_dir=tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_step_is_saved_before_it_is_evaluated(config, tmp_path, monkeypatch):
    run_dir = tmp_path / "run"
    config = dataclasses.replace(config, steps=3, eval_every=3)

    def fails(*_):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr("jaxformer.run.loop.evaluate", fails)
        with pytest.raises(MemoryError):
            train(config, RunOptions(run_dir=run_dir))
    assert checkpoint.steps(run_dir / "checkpoints") == [3]
    assert checkpoint.read_metadata(run_dir / "checkpoints").val_loss is None
    outcome = train(config, RunOptions(run_dir=run_dir, resume=True))
    assert checkpoint.read_metadata(run_dir / "checkpoints").val_loss == outcome.evaluation.loss


def test_a_file_system_without_locks_is_named_and_trained_on(config, run_dir, monkeypatch, capsys):
    def refuse(*_):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(directory.fcntl, "flock", refuse)
    assert train(config, RunOptions(run_dir=run_dir, resume=True, stop_after=3)).step == 3
    (line,) = (line for line in capsys.readouterr().err.splitlines() if ".lock" in line)
    assert line.startswith(f"{run_dir / '.lock'} cannot be locked (Function not implemented)")


@pytest.mark.slow  # in the quick set tests/test_checkpoint.py restores from every mesh on every one
def test_resuming_on_another_mesh_is_allowed_and_close(divided, tmp_path):
    train(divided, RunOptions(run_dir=tmp_path / "whole"))
    train(divided, RunOptions(run_dir=tmp_path / "halves", stop_after=20))
    moved = dataclasses.replace(divided, mesh=MeshConfig(data=1, fsdp=8))
    train(moved, RunOptions(run_dir=tmp_path / "halves", resume=True))
    for (*what, ours, _), (*same, theirs, _) in zip(
        tiny.losses(tmp_path / "halves"), tiny.losses(tmp_path / "whole"), strict=True
    ):
        assert what == same
        assert ours == pytest.approx(theirs, abs=2e-6)


def test_a_run_killed_before_its_first_checkpoint_starts_again(config, tmp_path):
    train(config, RunOptions(run_dir=tmp_path / "whole"))
    train(config, RunOptions(run_dir=tmp_path / "run", stop_after=3))
    checkpoints = tmp_path / "run" / "checkpoints"
    os.rename(checkpoints / "3", checkpoints / ".saving-3")  # as a kill during the save leaves it
    train(config, RunOptions(run_dir=tmp_path / "run", resume=True))
    assert tiny.losses(tmp_path / "run") == tiny.losses(tmp_path / "whole")


def test_a_vocabulary_smaller_than_the_tokenizers_is_refused(config, tmp_path):
    model = dataclasses.replace(config.model, vocab_size=5)
    with pytest.raises(UserError, match="less than the tokenizer's"):
        train(dataclasses.replace(config, model=model), RunOptions(run_dir=tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_devices_are_simulated():
    assert jax.device_count() == 8


def test_an_end_asked_for_amid_an_evaluation_waits_for_none_and_costs_none(
    config, tmp_path, monkeypatch
):
    config = dataclasses.replace(config, eval_tokens=10_000)  # several batches
    scored = []

    def asked_to_end(batch, sharding):
        scored.append(batch)
        if len(scored) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return shard_batch(batch, sharding)

    with monkeypatch.context() as patch:
        patch.setattr("jaxformer.evaluation.loss.shard_batch", asked_to_end)
        ended = train(config, RunOptions(run_dir=tmp_path / "run"))
    assert (ended.exit_status, ended.step, ended.evaluation, len(scored)) == (143, 20, None, 2)
    train(config, RunOptions(run_dir=tmp_path / "run", resume=True))
    train(config, RunOptions(run_dir=tmp_path / "whole"))
    assert tiny.losses(tmp_path / "run") == tiny.losses(tmp_path / "whole")
    assert [row[:2] for row in tiny.losses(tmp_path / "run")].count((20, "val")) == 1


def test_a_run_directory_that_another_host_sees_late_or_never(tmp_path, monkeypatch):
    monkeypatch.setattr(directory, "APPEARS", 0.3)
    assert not directory.wait_until_visible(tmp_path)
    threading.Timer(0.1, (tmp_path / "config.json").touch).start()
    assert directory.wait_until_visible(tmp_path)


def test_processes_agree_on_what_each_sees_of_the_run_and_on_the_end(config, tmp_path, monkeypatch):
    words = []
    monkeypatch.setattr("jaxformer.runtime.distributed.assert_same_on_all_processes", words.append)
    train(config, RunOptions(run_dir=tmp_path / "run", stop_after=2, max_skipped=7))
    (started, ready, saved) = words
    assert started.endswith(", 2, 7, 0]")
    assert (ready, saved) == ("ready, and sees the run: True", "saved 2")
