"""metrics.jsonl: what is written is read, and a resumed run's file is that of one never stopped."""

import contextlib
import json
import math
import resource
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxformer.errors import UserError
from jaxformer.monitor.metrics import MetricsWriter, read_metrics


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.jsonl"


def write_steps(path: Path, first: int, last: int, resume_step: int | None) -> None:
    """The lines of a deterministic run's steps, with a validation loss every third."""
    with MetricsWriter(path, resume_step) as writer:
        for step in range(first, last + 1):
            writer.write(step, "train", loss=5.0 / step, learning_rate=1e-3 * step)
            if step % 3 == 0:
                writer.write(step, "val", loss=6.0 / step)


def test_a_line_is_an_object_with_step_split_and_loss(path):
    with MetricsWriter(path) as writer:
        writer.write(1, "train", loss=2.5, tokens=3)
        assert path.read_text() == '{"step": 1, "split": "train", "loss": 2.5, "tokens": 3}\n'
        writer.write(1, "val", loss=1.0)
        assert path.read_text().count("\n") == 2  # readable during the run


@given(st.floats(width=32) | st.floats())
@settings(deadline=None)
def test_every_number_comes_back_bit_for_bit(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("run") / "metrics.jsonl"
    with MetricsWriter(path) as writer:
        writer.write(1, "val", loss=np.float64(value), other=value)

    def refuse(constant: str):
        raise AssertionError(f"{constant} is not JSON")

    json.loads(path.read_text(), parse_constant=refuse)
    (row,) = read_metrics(path)
    assert math.isnan(value) == math.isnan(row["loss"])
    if not math.isnan(value):
        assert row == {"step": 1, "split": "val", "loss": value, "other": value}


def test_float32_scalars_keep_their_digits(path):
    loss = np.float32(0.1)
    with MetricsWriter(path) as writer:
        writer.write(1, "train", loss=loss)
    assert '"loss": 0.10000000149011612}' in path.read_text()
    assert np.float32(read_metrics(path)[0]["loss"]) == loss


@given(st.data())
@settings(deadline=None, max_examples=60)
def test_a_run_killed_at_any_byte_resumes_to_the_file_of_one_never_stopped(tmp_path_factory, data):
    directory = tmp_path_factory.mktemp("run")
    whole, resumed = directory / "whole.jsonl", directory / "resumed.jsonl"
    write_steps(whole, 1, 12, None)
    text = whole.read_bytes()
    killed_at = data.draw(st.integers(0, len(text)))
    resumed.write_bytes(text[:killed_at])
    complete = text[:killed_at].count(b"\n")
    last = json.loads(text.splitlines()[complete - 1])["step"] if complete else 0
    saved = data.draw(st.integers(0, max(0, last - 1)))  # every line of a saved step is there
    write_steps(resumed, saved + 1, 12, saved)
    assert resumed.read_bytes() == text
    assert sorted(file.name for file in directory.iterdir()) == ["resumed.jsonl", "whole.jsonl"]


def test_a_whole_last_line_without_its_end_is_kept(path):
    path.write_text('{"step": 1, "split": "train", "loss": 2.5}')
    write_steps(path, 2, 2, 1)
    assert [row["step"] for row in read_metrics(path)] == [1, 2]


def test_resume_without_a_file_begins_one(path):
    write_steps(path, 5, 6, 4)
    assert [row["step"] for row in read_metrics(path)] == [5, 6, 6]


def test_a_new_run_writes_over_nothing(path):
    write_steps(path, 1, 2, None)
    before = path.read_bytes()
    with pytest.raises(UserError, match="holds the metrics of a run: use --resume or another"):
        MetricsWriter(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "line",
    [
        "nonsense",
        "",
        "[]",
        "3",
        "{}",
        '{"step": 1, "split": "train"}',
        '{"step": 1, "split": "test", "loss": 1}',
        '{"step": 1.5, "split": "train", "loss": 1}',
        '{"step": "1", "split": "train", "loss": 1}',
        '{"step": "inf", "split": "train", "loss": 1}',
        '{"step": 1, "split": [], "loss": 1}',
        '{"step": 1, "split": "train", "loss": "low"}',
        '{"step": 1, "split": "train", "loss": null}',
        "\x00\x00\x00",
        "[" * 100_000,
    ],
)
def test_a_damaged_line_is_named_and_nothing_is_lost(path, line):
    good = '{"step": 1, "split": "train", "loss": 2.5}\n'
    path.write_text(f"{good}{line}\n{good}")
    for use in (lambda: read_metrics(path), lambda: MetricsWriter(path, resume_step=0)):
        with pytest.raises(UserError, match=r"metrics.jsonl line 2 is damaged"):
            use()
    assert path.read_text() == f"{good}{line}\n{good}"


def test_a_line_being_written_is_left_out(path):
    path.write_text('{"step": 1, "split": "train", "loss": 2.5}\n{"step": 2, "spl')
    assert [row["step"] for row in read_metrics(path)] == [1]


def test_a_missing_file_is_refused(path):
    with pytest.raises(UserError, match=r"metrics.jsonl is missing: name the --run-dir"):
        read_metrics(path)


@contextlib.contextmanager
def disk_of(size: int):
    """No file may grow beyond `size` bytes, as if the disk were full there."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_names_the_file_and_keeps_the_lines_before(path):
    with disk_of(100), MetricsWriter(path) as writer:
        writer.write(1, "train", loss=1.0)
        writer.write(2, "train", loss=1.0)
        with pytest.raises(OSError, match="File too large") as caught:
            writer.write(3, "train", loss=1.0)
    assert caught.value.filename == str(path)
    assert path.stat().st_size == 100
    assert [row["step"] for row in read_metrics(path)] == [1, 2]


def test_a_disk_too_full_to_resume_loses_nothing(path):
    write_steps(path, 1, 6, None)
    before = path.read_bytes()
    with disk_of(50), pytest.raises(OSError, match="File too large") as caught:
        MetricsWriter(path, resume_step=5)
    assert caught.value.filename == str(path)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["metrics.jsonl"]
