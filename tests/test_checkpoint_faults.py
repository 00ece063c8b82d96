"""Damage is noticed, named and survived; a failed write is one line and costs nothing earlier."""

import errno
import gc
import logging
import os
import random
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import pytest

from jaxformer import checkpoint, manifest
from jaxformer.checkpoint import CheckpointWriter, restore, steps
from jaxformer.errors import UserError
from tests.states import abstract, assert_same_bits, save_all, small_state, snapshot


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("two")
    save_all(directory, [10, 20])
    return directory


def damage(path: Path, kind: str, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    if kind == "flip" and data:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == "truncate" and data:
        del data[rng.randrange(len(data)) :]
    elif kind == "append" or not data:
        data += b"\0"
    path.write_bytes(data)
    if kind == "delete":
        path.unlink()


@pytest.mark.parametrize("kind", ["flip", "truncate", "append", "delete"])
def test_damage_to_any_file_is_named_and_the_step_before_is_used(
    two_steps: Path, tmp_path: Path, kind: str
) -> None:
    names = [p.relative_to(two_steps / "20") for p in (two_steps / "20").rglob("*") if p.is_file()]
    assert len(names) > 8
    rng = random.Random(kind)
    for name in names:
        directory = tmp_path / "copy"
        shutil.copytree(two_steps, directory)
        damage(directory / "20" / name, kind, rng)
        restored, found = restore(directory, abstract(small_state(0)))
        assert_same_bits(restored, small_state(10))
        assert (found.step, found.metadata["position"], len(found.skipped)) == (10, 10, 1)
        assert found.skipped[0].startswith(f"checkpoint 20 cannot be used: {name} ")
        with pytest.raises(UserError, match="checkpoint 20 cannot be used"):
            restore(directory, abstract(small_state(0)), 20)
        shutil.rmtree(directory)


def test_what_only_looks_like_a_step_is_passed_over(two_steps: Path, tmp_path: Path) -> None:
    directory = tmp_path / "copy"
    shutil.copytree(two_steps, directory)
    (directory / "30").mkdir()
    (directory / "40").touch()
    shutil.copytree(directory / "10", directory / "50")
    for name in ("0070", "x", "-1", "٩٩", "1e3"):
        (directory / name).mkdir()
    restored, found = restore(directory, abstract(small_state(0)))
    assert_same_bits(restored, small_state(20))
    reasons = dict(zip((50, 40, 30), found.skipped, strict=True))
    assert "is that of step 10" in reasons[50]
    assert "manifest.jsonl cannot be read" in reasons[40]
    assert "manifest.jsonl cannot be read" in reasons[30]
    assert steps(directory) == [10, 20, 50]


def test_strangers_in_a_step_are_named_and_ignored(two_steps: Path, tmp_path: Path) -> None:
    directory = tmp_path / "copy"
    shutil.copytree(two_steps, directory)
    params = directory / "20" / "params"
    strangers = [directory / "20" / ".DS_Store", params / "._x", params / "d" / ".nfs01"]
    shutil.copytree(directory / "10" / "params", params / "params")
    for path in strangers:
        path.write_bytes(b"stranger")
    restored, found = restore(directory, abstract(small_state(0)))
    assert_same_bits(restored, small_state(20))
    assert found.step == 20
    (line,) = found.skipped
    assert "checkpoint 20 " in line
    assert all(str(path.relative_to(directory / "20")) in line for path in strangers)


def test_a_load_that_fails_is_one_error_without_tracebacks(
    two_steps: Path, tmp_path: Path, capfd: pytest.CaptureFixture, caplog: pytest.LogCaptureFixture
) -> None:
    """What was written by other means than `save` verifies, and cannot be read."""
    directory = tmp_path / "copy"
    shutil.copytree(two_steps, directory)
    step = directory / "20"
    for item in ("params", "optimizer"):
        for path in (step / item / "d").iterdir():
            path.write_bytes(path.read_bytes()[:20])
    content = manifest.read(step)
    (step / manifest.FILE).unlink()
    manifest.write(step, content)
    with pytest.raises(UserError, match="checkpoint 20 is intact but cannot be loaded"):
        restore(directory, abstract(small_state(0)))
    gc.collect()  # asyncio logs errors that nobody asked for when their tasks are collected
    assert capfd.readouterr().err == ""
    assert caplog.records == []


def test_nothing_usable_is_one_line(two_steps: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no checkpoint in"):
        restore(tmp_path / "missing", {})
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot read"):
        steps(tmp_path / "file")
    directory = tmp_path / "copy"
    shutil.copytree(two_steps, directory)
    with pytest.raises(UserError, match=r"no checkpoint 15 in .*the steps 10, 20$"):
        restore(directory, {}, 15)
    for step in (10, 20):
        (directory / str(step) / manifest.FILE).unlink()
    with pytest.raises(UserError, match=r"checkpoint 20 .*; checkpoint 10 "):
        restore(directory, {})


def test_a_run_goes_on_past_the_damaged_step_it_came_from(two_steps: Path, tmp_path: Path) -> None:
    directory = tmp_path / "copy"
    shutil.copytree(two_steps, directory)
    damage(directory / "20" / "params" / "_METADATA", "truncate", random.Random(0))
    with CheckpointWriter(directory, keep=1) as writer:
        writer.save(15, small_state(15), {})
        writer.wait()
        assert restore(directory, abstract(small_state(0)))[1].step == 15
        writer.save(20, small_state(21), {})
    restored, found = restore(directory, abstract(small_state(0)))
    assert (found.step, found.skipped) == (20, ())
    assert_same_bits(restored, small_state(21))
    assert len(list(directory.glob(".damaged-20-*"))) == 1


def test_a_damaged_step_takes_the_place_of_no_good_one(two_steps: Path, tmp_path: Path) -> None:
    directory = tmp_path / "copy"
    shutil.copytree(two_steps, directory)
    damage(next((directory / "20" / "optimizer").rglob("_METADATA")), "truncate", random.Random(0))
    before = snapshot(directory / "20")
    with CheckpointWriter(directory, keep=2) as writer:
        writer.save(30, small_state(30), {})
    assert steps(directory) == [10, 20, 30], "10 is the second good one"
    with CheckpointWriter(directory, keep=1) as writer:
        writer.save(40, small_state(40), {})
    assert steps(directory) == [20, 40]
    assert snapshot(directory / "20") == before, "what is damaged is left to whoever can mend it"


def save_and_wait(writer: CheckpointWriter) -> None:
    writer.save(2, small_state(2), {})
    writer.wait()


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def full_for_trash(old: Path, new: Path, rename: Callable[[Path, Path], None] = os.rename) -> None:
    (full if ".trash" in str(new) else rename)(old, new)


@pytest.mark.parametrize("stage", ["orbax", "commit", "manifest", "sync", "retention"])
def test_a_full_disk_is_one_line_and_costs_no_earlier_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    save_all(tmp_path, [1])
    with CheckpointWriter(tmp_path, keep=1) as writer:
        if stage == "orbax":
            monkeypatch.setattr(checkpoint.writer.ocp, "save_checkpointables_async", full)
        elif stage == "commit":
            monkeypatch.setattr(os, "rename", full)
        elif stage == "manifest":
            monkeypatch.setattr(manifest, "write", full)
        elif stage == "sync":
            monkeypatch.setattr(manifest, "sync", full)
        else:
            monkeypatch.setattr(os, "rename", full_for_trash)
        with pytest.raises(UserError) as error:
            save_and_wait(writer)
        monkeypatch.undo()
        assert "saving checkpoint 2" in str(error.value)
        assert "No space left on device" in str(error.value)
        assert "earlier checkpoints are intact (steps [1])" in str(error.value) or (
            stage == "retention"
        )
        assert "make room and resume" in str(error.value)
        written = {"1", "2"} if stage == "retention" else {"1"}
        assert {path.name for path in tmp_path.iterdir()} == written
        assert restore(tmp_path, abstract(small_state(0)), 1)[1].skipped == ()
        writer.save(3, small_state(3), {})  # room was made
    assert restore(tmp_path, abstract(small_state(0)))[1].step == 3


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.EDQUOT, "make room"),
        (errno.EFBIG, "make room"),
        (errno.EACCES, "mend that"),
    ],
)
def test_room_is_asked_for_only_where_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, advice: str
) -> None:
    def failing(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    with CheckpointWriter(tmp_path, keep=1) as writer:
        monkeypatch.setattr(manifest, "write", failing)
        with pytest.raises(UserError, match=f"{advice} and resume"):
            save_and_wait(writer)


def test_the_settings_of_tensorstore_are_left_out() -> None:
    error = OSError('No space left on device [tensorstore_spec=\'{"driver": "ocdbt"}\']')
    assert checkpoint.layout.brief(error) == "No space left on device"


def test_reads_that_end_after_a_failed_load_are_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", shown.append)
    with checkpoint.reader._late_reads_silenced():
        pass
    assert sys.unraisablehook == shown.append
    with pytest.raises(UserError), checkpoint.reader._late_reads_silenced():
        raise UserError("a failed load")
    late, other = RuntimeError("Event loop is closed"), RuntimeError("something else")
    hook: Any = sys.unraisablehook
    for error in (late, other):
        hook(SimpleNamespace(exc_value=error))
    assert [lost.exc_value for lost in shown] == [other]


def test_of_the_logs_orbax_alone_is_silenced(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("asyncio")
    logger.error("Task exception was never retrieved: /site-packages/orbax/checkpoint.py")
    logger.error("Task exception was never retrieved: /their/own.py")
    assert [record.getMessage()[-14:] for record in caplog.records] == [" /their/own.py"]


@pytest.mark.parametrize("made_anew", [False, True])
def test_a_directory_that_vanished_is_one_line(tmp_path: Path, made_anew: bool) -> None:
    with CheckpointWriter(tmp_path / "run", keep=2) as writer:
        writer.save(1, small_state(1), {})
        writer.wait()
        os.rename(tmp_path / "run", tmp_path / "gone")
        if made_anew:
            (tmp_path / "run").mkdir()
        with pytest.raises(UserError, match="run has vanished: put it back and resume"):
            writer.save(2, small_state(2), {})
        assert (tmp_path / "run").exists() == made_anew
        assert steps(tmp_path / "gone") == [1]


def test_an_empty_array_is_refused_in_one_line(tmp_path: Path) -> None:
    with CheckpointWriter(tmp_path, keep=1) as writer:
        with pytest.raises(UserError, match=r"zero size.*\): mend that and resume"):
            writer.save(1, {"x": jnp.zeros((0, 3))}, {})
    assert list(tmp_path.iterdir()) == []


def test_the_first_error_is_the_one_that_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(then: Exception | None) -> None:
        with CheckpointWriter(tmp_path, keep=1) as writer:
            writer.save(1, small_state(1), {})
            if then is not None:
                raise then

    monkeypatch.setattr(manifest, "write", full)
    with pytest.raises(KeyError):
        run(KeyError())
    with pytest.raises(UserError, match="No space left"):
        run(None)


def test_a_failed_save_is_seen_before_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train_on(writer: CheckpointWriter) -> None:
        for _ in range(1000):
            writer.check()
            time.sleep(0.01)

    monkeypatch.setattr(manifest, "write", full)
    with CheckpointWriter(tmp_path, keep=1) as writer:
        writer.save(1, small_state(1), {})
        with pytest.raises(UserError, match=r"saving checkpoint 1 .* No space left"):
            train_on(writer)
        writer.check()


@pytest.mark.parametrize(
    "name",
    ["a[1]", "lr[1e-3]/run", "a*", "what?", "back\\slash", "gs:/bucket/run", "s3:/x", "\udcff"],
)
def test_paths_that_orbax_takes_for_something_else_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="--run-dir"):
        CheckpointWriter(tmp_path / name, keep=1)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("root", ["gs", "s3", "az", "hf"])
def test_roots_that_orbax_takes_for_remote_storage_are_refused(root: str) -> None:
    with pytest.raises(UserError, match=f"/{root}"):
        checkpoint.check_path(Path("/", root, "run"))


@pytest.mark.parametrize(
    "name",
    ["a b", "ä{1}", "a]", "50%", "a:b", "-a", "~", "#!$&'\"", "a\nb", "gs", "x/gs/y", "a..b"],
)
def test_other_odd_paths_hold_checkpoints(tmp_path: Path, name: str) -> None:
    save_all(tmp_path / name, [1])
    assert_same_bits(restore(tmp_path / name, abstract(small_state(1)))[0], small_state(1))


def test_what_was_moved_to_such_a_path_is_read_or_refused_by_its_name(tmp_path: Path) -> None:
    save_all(tmp_path / "good", [1])
    shutil.copytree(tmp_path / "good", tmp_path / "a[1]")
    restored, _ = restore(tmp_path / "a[1]", abstract(small_state(1)))
    assert_same_bits(restored, small_state(1))
    shutil.copytree(tmp_path / "good", tmp_path / "gs:" / "bucket")
    with pytest.raises(UserError, match="address"):
        restore(tmp_path / "gs:" / "bucket", abstract(small_state(1)))


def test_a_validation_loss_is_added_to_a_sound_step_alone(two_steps: Path, tmp_path: Path) -> None:
    directory = tmp_path / "copy"
    shutil.copytree(two_steps, directory)
    damage(directory / "10" / "manifest.jsonl", "flip", random.Random(0))
    before = snapshot(directory / "10")
    with CheckpointWriter(directory, keep=9) as writer:
        for step in (10, 15, 20):  # there is no 15
            writer.add_val_loss(step, 0.25)
    assert snapshot(directory / "10") == before
    assert steps(directory) == [10, 20]
    assert checkpoint.read_metadata(directory).val_loss == 0.25


def test_what_a_file_system_lacks_is_named_before_the_first_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cause = "Failed to lock file: Function not implemented"

    def lacks_locks(path: Path, _: object) -> None:
        path.mkdir()
        raise ValueError(f"{path} " * 99 + cause)  # TensorStore names every layer first

    monkeypatch.setattr(checkpoint.writer.ocp, "save_checkpointables", lacks_locks)
    with pytest.raises(UserError, match=f"^checkpoints cannot be written to {tmp_path}.*{cause}"):
        CheckpointWriter(tmp_path, keep=1)
    assert not any(tmp_path.iterdir())
