"""Faults from outside: each ends in one clear line, and earlier checkpoints stay intact."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from jaxformer import checkpoint, manifest
from jaxformer.config import LanguageConfig, RunOptions
from jaxformer.errors import UserError
from jaxformer.run import directory, loop
from jaxformer.run.load import load_run
from tests.run.forked import PATIENCE, newest, training, wait_for
from tests.run.tiny import TEXT, flags, one_device, tiny_config, train_losses


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LanguageConfig:
    monkeypatch.setenv("JAXFORMER_CACHE", str(tmp_path / "cache"))
    return tiny_config(tmp_path, steps=6)


def run_to_end(words: list[str], place: Path, **environment: str) -> tuple[int, str]:
    """Exit status, and what was printed."""
    log = place / "log"
    log.unlink(missing_ok=True)
    cache = {"JAXFORMER_CACHE": str(place / "cache")}
    with training(words, log, **cache, **environment) as process:
        process.join(PATIENCE)
        assert process.exitcode is not None, f"hangs: {log.read_text()}"
        return process.exitcode, log.read_text()


def the_error(status: int, said: str) -> str:
    """The one line with which a run was refused."""
    assert status == 2, said
    assert "Traceback" not in said
    (line,) = (line for line in said.splitlines() if "error:" in line)
    assert said.endswith(f"{line}\n"), said
    return line


def test_a_full_disk_is_one_line_and_the_run_goes_on_when_there_is_room(
    config: LanguageConfig, tmp_path: Path
) -> None:
    words = flags(config, tmp_path / "run")
    assert run_to_end([*words, "--stop-after", "2"], tmp_path)[0] == 0
    size = max(p.stat().st_size for p in (tmp_path / "run" / "checkpoints").rglob("*"))
    line = the_error(*run_to_end([*words, "--resume"], tmp_path, DISK=str(size - 1)))
    assert "saving checkpoint 3 in " in line
    assert "File too large" in line
    assert "earlier checkpoints are intact (steps [1, 2])" in line
    assert load_run(tmp_path / "run").step == 2
    assert run_to_end([*words, "--resume"], tmp_path)[0] == 0
    assert [step for step, _ in train_losses(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]


def test_a_disk_too_full_for_metrics_is_one_line_that_names_them(
    config: LanguageConfig, tmp_path: Path
) -> None:
    words = flags(config, tmp_path / "run")
    assert run_to_end([*words, "--stop-after", "2"], tmp_path)[0] == 0
    metrics = tmp_path / "run" / "metrics.jsonl"
    with metrics.open("ab") as file:  # an old run's are longer than any checkpoint's file
        row = json.dumps({"step": 2, "split": "val", "loss": 1.0, "tokens": 64}).encode() + b"\n"
        file.write(row * 4000)
    size = metrics.stat().st_size
    line = the_error(*run_to_end([*words, "--resume"], tmp_path, DISK=str(size + 50)))
    assert "metrics.jsonl: File too large" in line
    assert run_to_end([*words, "--resume"], tmp_path)[0] == 0
    assert load_run(tmp_path / "run").step == 6


def test_a_read_only_directory_is_one_line(config: LanguageConfig, tmp_path: Path) -> None:
    (tmp_path / "readonly").mkdir(mode=0o555)
    words = flags(config, tmp_path / "readonly" / "run")
    line = the_error(*run_to_end(words, tmp_path, POWERLESS="1"))
    assert "readonly/run: Permission denied; check its permissions" in line
    assert list((tmp_path / "readonly").iterdir()) == []


def test_checkpoints_that_became_read_only_are_one_line(
    config: LanguageConfig, tmp_path: Path
) -> None:
    words = flags(config, tmp_path / "run")
    assert run_to_end([*words, "--stop-after", "2"], tmp_path)[0] == 0
    checkpoints = tmp_path / "run" / "checkpoints"
    checkpoints.chmod(0o555)
    line = the_error(*run_to_end([*words, "--resume"], tmp_path, POWERLESS="1"))
    assert f"checkpoints cannot be written to {checkpoints}: " in line
    assert "ermission denied" in line
    assert "earlier checkpoints are intact (steps [1, 2])" in line
    assert load_run(tmp_path / "run").step == 2
    (tmp_path / "run" / "checkpoints").chmod(0o755)
    assert run_to_end([*words, "--resume"], tmp_path)[0] == 0


def test_a_run_that_could_save_nothing_leaves_nothing_behind(
    config: LanguageConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lacks_locks(path: Path, _: object) -> None:
        path.mkdir()
        raise ValueError("Failed to lock file: Function not implemented")

    one_device(monkeypatch)
    run_dir, refusal = tmp_path / "runs" / "run", "checkpoints cannot be written to"
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.writer.ocp, "save_checkpointables", lacks_locks)
        with pytest.raises(UserError, match=refusal):
            loop.train(config, RunOptions(run_dir=run_dir))
    assert not run_dir.exists()
    loop.train(config, RunOptions(run_dir=run_dir, stop_after=1))
    before = {p: p.read_bytes() for p in run_dir.rglob("*") if p.is_file()}
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.writer.ocp, "save_checkpointables", lacks_locks)
        with pytest.raises(UserError, match=refusal):
            loop.train(config, RunOptions(run_dir=run_dir, resume=True))
    assert before == {p: p.read_bytes() for p in run_dir.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    ("killed_in", "resume"), [("save_config", False), ("save_tokenizer", True)]
)
@pytest.mark.usefixtures("drawn")
def test_a_run_killed_before_its_first_step_goes_on(
    config: LanguageConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    killed_in: str,
    resume: bool,
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    one_device(monkeypatch)
    run_dir = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(directory, killed_in, killed)
        with pytest.raises(KeyboardInterrupt):
            loop.train(config, RunOptions(run_dir=run_dir))
    loop.train(config, RunOptions(run_dir=run_dir, resume=resume))
    loop.train(config, RunOptions(run_dir=tmp_path / "whole"))
    assert train_losses(run_dir) == train_losses(tmp_path / "whole")
    assert {path.name for path in run_dir.iterdir()} == {*directory.NAMES, directory.LOCK}


def moved_away(checkpoints: Path) -> None:
    checkpoints.rename(checkpoints.with_name("elsewhere"))


def not_mounted(checkpoints: Path) -> None:
    moved_away(checkpoints)
    checkpoints.mkdir()


def without_manifests(checkpoints: Path) -> None:
    shutil.copytree(checkpoints, checkpoints.with_name("elsewhere"))
    for step in checkpoint.steps(checkpoints):
        (checkpoints / str(step) / manifest.FILE).unlink()


@pytest.mark.parametrize(
    ("lose", "steps"), [(moved_away, 1), (not_mounted, 3), (without_manifests, 1)]
)
def test_a_run_that_lost_its_checkpoints_is_not_begun_anew(
    config: LanguageConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    lose: Callable[[Path], None],
    steps: int,
) -> None:
    one_device(monkeypatch)
    run_dir, checkpoints = tmp_path / "run", tmp_path / "run" / "checkpoints"
    loop.train(config, RunOptions(run_dir=run_dir, stop_after=steps))
    metrics = (run_dir / "metrics.jsonl").read_bytes()
    lose(checkpoints)
    with pytest.raises(UserError, match=r"checkpoints holds no checkpoint, though|manifest.jsonl"):
        loop.train(config, RunOptions(run_dir=run_dir, resume=True))
    assert (run_dir / "metrics.jsonl").read_bytes() == metrics
    shutil.rmtree(checkpoints, ignore_errors=True)
    (run_dir / "elsewhere").rename(checkpoints)
    loop.train(config, RunOptions(run_dir=run_dir, resume=True))
    assert [step for step, _ in train_losses(run_dir)] == [1, 2, 3, 4, 5, 6]


@pytest.mark.usefixtures("drawn")
def test_a_run_killed_before_its_first_checkpoint_starts_from_scratch_and_says_so(
    config: LanguageConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    one_device(monkeypatch)
    run_dir = tmp_path / "run"
    loop.train(config, RunOptions(run_dir=run_dir, stop_after=2))
    for step in (1, 2):
        shutil.rmtree(run_dir / "checkpoints" / str(step))
    (run_dir / ".metrics.jsonl.123").write_bytes(b"{")  # what it had begun to write
    loop.train(config, RunOptions(run_dir=run_dir, resume=True))
    assert "the run has no checkpoint yet: it starts from scratch" in capsys.readouterr().out
    assert [step for step, _ in train_losses(run_dir)] == [1, 2, 3, 4, 5, 6]
    assert {path.name for path in run_dir.iterdir()} == {*directory.NAMES, directory.LOCK}


@pytest.mark.parametrize("name", ["run", "run/checkpoints"])
def test_a_directory_that_vanishes_is_one_line(
    config: LanguageConfig, tmp_path: Path, name: str
) -> None:
    config = tiny_config(tmp_path, steps=100_000)
    words, log = flags(config, tmp_path / "run"), tmp_path / "log"
    with training(words, log, JAXFORMER_CACHE=str(tmp_path / "cache")) as process:
        wait_for(lambda: newest(tmp_path / "run") > 2, process, log)
        os.rename(tmp_path / name, tmp_path / "gone")
        process.join(PATIENCE)
        assert process.exitcode is not None, "continues without a directory"
        line = the_error(process.exitcode, log.read_text())
    assert "checkpoints has vanished: put it back and resume" in line or (
        "saving checkpoint" in line and "No such file" in line  # it vanished during a save
    )
    kept = tmp_path / "gone" if name == "run/checkpoints" else tmp_path / "gone" / "checkpoints"
    assert len(checkpoint.steps(kept)) >= 2
    for step in checkpoint.steps(kept):
        manifest.verify(kept / str(step))


def test_relative_paths_hold_from_elsewhere(
    config: LanguageConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_device(monkeypatch)
    monkeypatch.chdir(tmp_path)
    loop.train(config, RunOptions(run_dir=Path("run"), stop_after=2))
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    loop.train(config, RunOptions(run_dir=Path("../run"), resume=True))
    assert [step for step, _ in train_losses(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]
    assert list((tmp_path / "other").iterdir()) == []


def test_other_versions_are_said_in_one_line_and_the_run_goes_on(
    config: LanguageConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    one_device(monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr("jax.__version__", "0.9.1")
        loop.train(config, RunOptions(run_dir=tmp_path / "run", stop_after=2))
    capsys.readouterr()
    loop.train(config, RunOptions(run_dir=tmp_path / "run", resume=True, stop_after=3))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("made with jax 0.9.1 (here ")
    assert "the run continues" in line
    loop.train(config, RunOptions(run_dir=tmp_path / "run", resume=True))
    assert capsys.readouterr().err == ""


def test_data_and_configuration_that_changed_are_one_line_and_cost_nothing(
    config: LanguageConfig, tmp_path: Path
) -> None:
    words = flags(config, tmp_path / "run")
    assert run_to_end([*words, "--stop-after", "2"], tmp_path)[0] == 0
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    wider = [*words, "--resume", "--model.mlp-width", "16"]
    assert "--model.mlp-width 16 (the run has 8)" in the_error(*run_to_end(wider, tmp_path))
    config.data.path.write_text(TEXT.replace("beer", "reeb"), encoding="utf-8")
    line = the_error(*run_to_end([*words, "--resume"], tmp_path))
    assert "its data differ" in line
    config.data.path.unlink()
    line = the_error(*run_to_end([*words, "--resume"], tmp_path))
    assert "data.path" in line
    assert "text.txt" in line
    assert before == {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
