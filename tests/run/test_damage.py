"""Damaged checkpoints are noticed before training, named, and the good step before is used."""

import random
import shutil
from pathlib import Path

import pytest

from jaxformer import checkpoint
from jaxformer.config import LanguageConfig, RunOptions
from jaxformer.monitor.metrics import read_metrics
from jaxformer.run import loop, resume
from jaxformer.tasks.language_modeling import language_task
from jaxformer.tasks.program import build
from tests.run.tiny import one_device, tiny_config, whole_state

KINDS = ("flip", "truncate", "append", "delete", "stray")


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LanguageConfig:
    monkeypatch.setenv("JAXFORMER_CACHE", str(tmp_path / "cache"))
    one_device(monkeypatch)
    return tiny_config(tmp_path, steps=6)


def damage(directory: Path, kind: str, rng: random.Random) -> str:
    """Damage one file below the directory, or add a stray one; its name."""
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    if kind in ("flip", "truncate"):
        files = [path for path in files if path.stat().st_size]
    path = rng.choice(files)
    data = bytearray(path.read_bytes())
    if kind == "flip":
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
    elif kind == "truncate":
        path.write_bytes(data[: rng.randrange(len(data))])
    elif kind == "append":
        path.write_bytes(data + rng.randbytes(rng.randrange(1, 9)))
    elif kind == "delete":
        path.unlink()
    else:
        path = path.parent / f"stray{rng.randrange(10**9)}"
        path.write_bytes(rng.randbytes(rng.randrange(9)))
    return path.relative_to(directory).as_posix()


def damage_and_restore(
    config: LanguageConfig, directory: Path, capsys: pytest.CaptureFixture, times: int
) -> None:
    run_dir = directory / "run"
    loop.train(config, RunOptions(run_dir=run_dir, stop_after=3))
    checkpoints = run_dir / "checkpoints"
    metadata = checkpoint.read_metadata(checkpoints).metadata
    mesh = loop.make_mesh(config.mesh)
    task = language_task(config, mesh)
    program = build(task.spec, mesh)
    expected = {n: checkpoint.state_hash(whole_state(config, run_dir, n)) for n in (2, 3)}
    options = RunOptions(run_dir=run_dir, resume=True)
    intact = directory / "intact"
    shutil.copytree(checkpoints / "3", intact)
    rng = random.Random(2)
    capsys.readouterr()
    for index in range(times):
        kind = KINDS[index % len(KINDS)]
        name = damage(checkpoints / "3", kind, rng)
        state, (step, *_) = resume.restore(task, program, dict(metadata), options)
        assert step == (3 if kind == "stray" else 2)
        assert checkpoint.state_hash(state) == expected[step]
        (line,) = capsys.readouterr().err.splitlines()
        fault = f"is used without {name}:" if kind == "stray" else f"cannot be used: {name} "
        assert line.startswith(f"checkpoint 3 {fault}")
        shutil.rmtree(checkpoints / "3")
        shutil.copytree(intact, checkpoints / "3")
    _, start = resume.restore(task, program, dict(metadata), options)
    assert start.step == 3


def test_damage_is_noticed_and_named_before_training(
    config: LanguageConfig, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    damage_and_restore(config, tmp_path, capsys, 30)


@pytest.mark.slow
def test_300_damages_are_noticed_and_named_before_training(
    config: LanguageConfig, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    damage_and_restore(config, tmp_path, capsys, 300)


def test_a_run_resumed_past_a_damaged_step_ends_as_if_nothing_had_happened(
    config: LanguageConfig, tmp_path: Path
) -> None:
    loop.train(config, RunOptions(run_dir=tmp_path / "whole"))
    loop.train(config, RunOptions(run_dir=tmp_path / "run", stop_after=3))
    damage(tmp_path / "run" / "checkpoints" / "3", "flip", random.Random(3))
    loop.train(config, RunOptions(run_dir=tmp_path / "run", resume=True))
    hashes = {checkpoint.state_hash(whole_state(config, tmp_path / r)) for r in ("run", "whole")}
    assert len(hashes) == 1
    assert [row["step"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl")] == [
        row["step"] for row in read_metrics(tmp_path / "whole" / "metrics.jsonl")
    ]
