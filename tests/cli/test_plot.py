"""`jaxformer plot RUN`."""

import json

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
    assert refusal(capsys, tmp_path).startswith(f"{tmp_path}/curves.png: Is a directory")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["curves.png", "metrics.jsonl"]
