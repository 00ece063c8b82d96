"""`jaxformer plot RUN`."""

import json
import os

import pytest

from jaxformer.cli.main import main

ROWS = [{"step": step, "split": "train", "loss": 5.0 / step} for step in range(1, 9)]


def refusal(capsys, run) -> str:
    with pytest.raises(SystemExit) as stop:
        main(["plot", str(run)])
    out, err = capsys.readouterr()
    assert (stop.value.code, out, err.count("\n")) == (2, "", 1)
    return err.removeprefix("jaxformer plot: error: ").strip()


def write(run, text: str) -> None:
    (run / "metrics.jsonl").write_text(text)


def test_draws_the_curves_of_a_run_and_prints_their_path(tmp_path, capsys):
    write(tmp_path, "".join(json.dumps(row) + "\n" for row in ROWS))
    main(["plot", str(tmp_path)])
    assert capsys.readouterr().out == f"{tmp_path}/curves.png\n"
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_refuses_what_is_not_a_run(tmp_path, capsys):
    absent = tmp_path / "absent"
    assert refusal(capsys, absent).startswith(f"{absent} ")
    metrics = tmp_path / "metrics.jsonl"
    assert refusal(capsys, tmp_path).startswith(f"{metrics} is missing")
    write(tmp_path, "")
    assert str(tmp_path) in refusal(capsys, tmp_path)
    write(tmp_path, json.dumps(ROWS[0]) + "\nnonsense\n")
    assert refusal(capsys, tmp_path).startswith(f"{metrics} line 2 ")
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_refuses_a_place_that_cannot_be_written(tmp_path, capsys):
    write(tmp_path, "".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "curves.png").mkdir()
    assert refusal(capsys, tmp_path).startswith(f"--output {tmp_path}/curves.png is there and ")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["curves.png", "metrics.jsonl"]


@pytest.fixture
def runs(tmp_path):
    """Three runs, one of which has measured nothing yet."""
    found = [tmp_path / name for name in ("base", "lr[1e-3]", "日本 $x")]
    for run, rows in zip(found, (ROWS, ROWS[:3], []), strict=True):
        run.mkdir()
        write(run, "".join(json.dumps(row) + "\n" for row in rows))
    return found


def drawn(capsys, *words) -> str:
    main(["plot", *map(str, words)])
    out, err = capsys.readouterr()
    assert err == ""
    return out.strip()


def test_several_runs_are_in_one_picture(runs, tmp_path, capsys, monkeypatch):
    path = tmp_path / "both.png"
    assert drawn(capsys, *runs, "--output", path) == str(path)
    assert path.read_bytes().startswith(b"\x89PNG")
    monkeypatch.chdir(tmp_path)
    for _ in range(2):  # a picture of ours is drawn again
        assert drawn(capsys, *runs) == "curves.png"
        assert (tmp_path / "curves.png").read_bytes() == path.read_bytes()
    assert not any((run / "curves.png").exists() for run in runs)


def test_one_run_is_drawn_where_output_says(runs, tmp_path, capsys):
    path = tmp_path / "one.png"
    assert drawn(capsys, runs[0], "--output", path) == str(path)
    assert not (runs[0] / "curves.png").exists()


@pytest.mark.parametrize("content", [b"", b"text", b"\x89PNG\r\n\x1a\n of somebody else"])
def test_a_file_that_is_no_picture_of_ours_is_not_overwritten(
    runs, tmp_path, capsys, content, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    own = f"{runs[0]}/curves.png"
    for words, name in (
        ([*runs, "--output", "a.png"], "a.png"),
        (runs, "curves.png"),
        (runs[:1], own),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(SystemExit) as stop:
            main(["plot", *map(str, words)])
        assert stop.value.code == 2
        assert f"--output {name}" in capsys.readouterr().err
        assert (tmp_path / name).read_bytes() == content


@pytest.mark.parametrize("name", ["a.pdf", "absent/a.png", "folder.png", "fifo.png"])
def test_a_file_that_cannot_be_a_picture_is_refused(runs, tmp_path, capsys, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "fifo.png")
    with pytest.raises(SystemExit) as stop:
        main(["plot", *map(str, runs), "--output", name])
    err = capsys.readouterr().err
    assert (stop.value.code, err.count("\n")) == (2, 1)
    assert f"--output {name}" in err


def test_nothing_measured_in_any_run_is_refused(runs, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    write(other, "")
    with pytest.raises(SystemExit) as stop:
        main(["plot", str(runs[2]), str(other)])
    assert stop.value.code == 2
    assert "no metrics to draw" in capsys.readouterr().err
    assert not (tmp_path / "curves.png").exists()
