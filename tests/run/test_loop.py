"""The training loop: resumed = uninterrupted, to the bit; nothing is lost, nothing overwritten."""

import dataclasses
import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxformer import checkpoint
from jaxformer.batch import Batch
from jaxformer.config import (
    CheckpointConfig,
    CopyConfig,
    DataConfig,
    GPTConfig,
    LanguageConfig,
    MeshConfig,
    NumbersConfig,
    RunOptions,
    TextPairsConfig,
)
from jaxformer.errors import UserError
from jaxformer.monitor.metrics import read_metrics
from jaxformer.run import directory, resume
from jaxformer.run.load import load_run
from jaxformer.run.loop import train
from jaxformer.sharding.mesh import make_mesh, shard_batch
from jaxformer.tasks.config_io import load_config
from jaxformer.tasks.language_modeling import language_spec
from jaxformer.tasks.program import build
from tests.run import forked, tiny

TEXT = "".join(f"{i} bottles of beer on the wall, {i} bottles of beer.\n" for i in range(400))


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Iterator[Path]:
    """Where the text is, and what was prepared of it."""
    place = tmp_path_factory.mktemp("loop")
    (place / "text.txt").write_text(TEXT, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXFORMER_CACHE", str(place / "cache"))
        yield place


@pytest.fixture
def config(divided, monkeypatch) -> LanguageConfig:
    """On one device, which compiles sooner."""
    tiny.one_device(monkeypatch)
    return dataclasses.replace(divided, mesh=MeshConfig())


@pytest.fixture(scope="module")
def begun(place, divided) -> Path:
    """A run on one device that was stopped after two steps."""
    with pytest.MonkeyPatch.context() as patch:
        tiny.one_device(patch)
        config = dataclasses.replace(divided, mesh=MeshConfig())
        train(config, RunOptions(run_dir=place / "begun", stop_after=2))
    return place / "begun"


@pytest.fixture
def run_dir(begun, tmp_path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(begun, tmp_path / "run"))


@pytest.fixture(scope="module")
def divided(place) -> LanguageConfig:
    """On eight devices."""
    return LanguageConfig(
        model=GPTConfig(
            vocab_size=0,
            context_length=16,
            width=16,
            num_heads=2,
            mlp_width=32,
            num_layers=2,
            dropout_rate=0.2,
        ),
        data=DataConfig(path=place / "text.txt", tokenizer="characters"),
        checkpoint=CheckpointConfig(every=15, keep=2),
        mesh=MeshConfig(data=4, fsdp=2),
        steps=40,
        batch_size=8,
        eval_every=20,
        seed=3,
    )


def losses(run_dir: Path) -> list[tuple]:
    rows = read_metrics(run_dir / "metrics.jsonl")
    return [(row["step"], row["split"], row["loss"], row.get("grad_norm")) for row in rows]


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
    assert losses(halves) == losses(whole)
    assert [row[0] for row in losses(whole) if row[1] == "train"] == list(range(1, steps + 1))
    states = [checkpoint.read_metadata(run / "checkpoints") for run in (whole, halves)]
    assert [found.step for found in states] == [steps, steps]
    model = dataclasses.replace(config.model, vocab_size=len(set(TEXT)))
    resumed = dataclasses.replace(config, model=model, steps=steps)
    hashes = {checkpoint.state_hash(final_state(resumed, run)[0]) for run in (whole, halves)}
    assert len(hashes) == 1


def test_a_run_leaves_what_a_run_directory_holds(divided, tmp_path, capsys):
    outcome = train(divided, RunOptions(run_dir=tmp_path / "run"))
    assert outcome.exit_status == 0
    names = {path.name for path in (tmp_path / "run").iterdir()} - {".lock"}
    assert names == {"config.json", "tokenizer.json", "metrics.jsonl", "checkpoints", "curves.png"}
    assert "compiled" not in capsys.readouterr().out
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert losses(tmp_path / "run")[0][2] > rows[-1]["loss"], "it learned nothing"
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


def test_a_finished_run_says_so(config, tmp_path, capsys):
    config = dataclasses.replace(config, steps=2)
    train(config, RunOptions(run_dir=tmp_path / "run"))
    train(config, RunOptions(run_dir=tmp_path / "run", resume=True))
    assert "nothing is left to do" in capsys.readouterr().out


def test_resuming_nothing_is_refused(config, tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        train(config, RunOptions(run_dir=tmp_path / "run", resume=True))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"steps": 30}, "--steps 30 (the run has 40)"),
        ({"seed": 4}, "--seed 4 (the run has 3)"),
        ({"batch_size": 16}, "--batch-size 16 (the run has 8)"),
    ],
)
def test_resuming_with_another_configuration_names_what_differs(config, run_dir, change, named):
    with pytest.raises(UserError) as refusal:
        train(dataclasses.replace(config, **change), RunOptions(run_dir=run_dir, resume=True))
    assert named in str(refusal.value)


@pytest.mark.parametrize(
    ("setting", "value", "named"),
    [
        ("enable_x64", True, "JAX_ENABLE_X64 is True (the run has False)"),
        ("threefry_partitionable", False, "JAX_THREEFRY_PARTITIONABLE is False (the run has True)"),
        ("default_matmul_precision", "highest", "PRECISION is highest (the run has None)"),
    ],
)
def test_resuming_with_other_settings_of_jax_names_them(config, run_dir, setting, value, named):
    with getattr(jax, setting)(value), pytest.raises(UserError, match=re.escape(named)):
        train(config, RunOptions(run_dir=run_dir, resume=True))


def test_other_data_are_described_and_other_settings_of_old_runs_unknown(tmp_path):
    data = DataConfig()
    here = {"settings": {"JAX_X": 1}, "rows": None, "keys": {}}
    here |= {"data": "0f", "text": "python-3.12.1-stdlib: 30 MB"}
    resume.check_metadata(tmp_path, data, {"data": "0f", "rows": None, "keys": {}}, here)
    saved = here | {"data": "1e", "text": "python-3.11.4-stdlib: 29 MB"}
    with pytest.raises(UserError, match=r"python-3\.11\.4-.*python-3\.12\.1-.*Python's"):
        resume.check_metadata(tmp_path, data, saved, here)


@pytest.mark.parametrize(
    ("data", "flags"),
    [
        (DataConfig(), ["--data.path"]),
        (TextPairsConfig(), ["--data.source", "--data.target"]),
        (
            TextPairsConfig(val_source=Path("a"), val_target=Path("b")),
            ["--data.source", "--data.target", "--data.val-source", "--data.val-target"],
        ),
        (CopyConfig(), []),
        (NumbersConfig(), []),
    ],
)
def test_changed_data_are_restored_or_named_by_the_flags_of_the_kind(data, flags, tmp_path):
    here = {"settings": {}, "rows": None, "keys": {}, "data": "0f", "text": "pairs: 30 MB"}
    with pytest.raises(UserError, match="data differ") as refusal:
        resume.check_metadata(tmp_path, data, here | {"data": "1e"}, here)
    assert re.findall(r"--data[\w.-]+", str(refusal.value)) == flags
    assert "30 MB" not in str(refusal.value), "two equal descriptions tell nothing"


def test_validations_may_come_at_other_times_in_another_thread(config, run_dir):
    """A resumed run changes its --eval-every; Python handles no signals in other threads."""
    config = dataclasses.replace(config, eval_every=3)
    with ThreadPoolExecutor(1) as thread:
        options = RunOptions(run_dir=run_dir, resume=True, stop_after=3)
        outcome = thread.submit(train, config, options).result()
    assert (outcome.step, outcome.exit_status) == (3, 0)
    validated = [row[0] for row in losses(run_dir) if row[1] == "val"]
    assert validated == [3]
    assert load_run(run_dir).step == 3
    assert load_config(run_dir / "config.json").eval_every == 3, "the next resume keeps it"


def test_resuming_with_other_data_is_refused(config, place, run_dir):
    (place / "text.txt").write_text(TEXT.replace("beer", "reeb"), encoding="utf-8")
    try:
        with pytest.raises(UserError, match="data differ"):
            train(config, RunOptions(run_dir=run_dir, resume=True))
    finally:
        (place / "text.txt").write_text(TEXT, encoding="utf-8")


def test_a_text_that_was_moved_is_the_same_text(config, place, run_dir, tmp_path):
    moved = tmp_path / "elsewhere.txt"
    shutil.copy(place / "text.txt", moved)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, path=moved))
    outcome = train(config, RunOptions(run_dir=run_dir, resume=True, stop_after=3))
    assert outcome.step == 3
    assert load_config(run_dir / "config.json").data.path == moved
    load_run(run_dir)
    # Other text at another place is refused, and the run stays where it was.
    other = tmp_path / "other.txt"
    other.write_text(TEXT.replace("beer", "reeb"), encoding="utf-8")
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, path=other))
    with pytest.raises(UserError, match=r"data differ.*--data\.path"):
        train(config, RunOptions(run_dir=run_dir, resume=True))
    assert load_config(run_dir / "config.json").data.path == moved


def test_a_tokenizer_of_another_run_is_refused(config, run_dir):
    own = (run_dir / "tokenizer.json").read_bytes()
    (run_dir / "tokenizer.json").write_text('{"kind": "characters", "characters": "ABC"}')
    for use in (
        lambda: load_run(run_dir),
        lambda: train(config, RunOptions(run_dir=run_dir, resume=True)),
    ):
        with pytest.raises(UserError, match=r"tokenizer\.json is not the tokenizer"):
            use()
    # Other words for the same rules, or the file that was trained with: either is the run's own.
    (run_dir / "tokenizer.json").write_bytes(own + b"\n")
    load_run(run_dir)


@pytest.mark.parametrize("name", ["a[1]", "lr[1e-3]/run", "gs:/bucket"])
def test_a_run_directory_that_cannot_hold_checkpoints_is_refused_at_once(config, tmp_path, name):
    with pytest.raises(UserError, match="--run-dir"):
        train(config, RunOptions(run_dir=tmp_path / name))
    assert not any(tmp_path.iterdir())


def test_a_run_directory_that_is_the_directory_of_its_text_is_refused(config, tmp_path):
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    data = dataclasses.replace(config.data, path=tmp_path)
    with pytest.raises(UserError, match="--run-dir"):
        train(dataclasses.replace(config, data=data), RunOptions(run_dir=tmp_path))
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


@pytest.mark.slow  # as is the move between two processes and one: test_processes.py
def test_resuming_on_another_mesh_is_allowed_and_close(divided, tmp_path):
    train(divided, RunOptions(run_dir=tmp_path / "whole"))
    train(divided, RunOptions(run_dir=tmp_path / "halves", stop_after=20))
    moved = dataclasses.replace(divided, mesh=MeshConfig(data=1, fsdp=8))
    train(moved, RunOptions(run_dir=tmp_path / "halves", resume=True))
    for (*what, ours, _), (*same, theirs, _) in zip(
        losses(tmp_path / "halves"), losses(tmp_path / "whole"), strict=True
    ):
        assert what == same
        assert ours == pytest.approx(theirs, abs=2e-6)


def test_a_run_killed_before_its_first_checkpoint_starts_again(config, tmp_path):
    train(config, RunOptions(run_dir=tmp_path / "whole"))
    train(config, RunOptions(run_dir=tmp_path / "run", stop_after=3))
    checkpoints = tmp_path / "run" / "checkpoints"
    os.rename(checkpoints / "3", checkpoints / ".saving-3")  # as a kill during the save leaves it
    train(config, RunOptions(run_dir=tmp_path / "run", resume=True))
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


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
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    assert [row[:2] for row in losses(tmp_path / "run")].count((20, "val")) == 1


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
