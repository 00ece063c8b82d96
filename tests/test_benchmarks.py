"""Benchmarks of train steps measure all their sides, print them and write them down."""

import json
import sys

import pytest

from benchmarks import guard, steps, train_step
from tests.run.tiny import tiny_config

SIDES = {
    train_step: ["jaxformer, jit", "twin, eager"],
    guard: ["unguarded", "guarded"],
}


@pytest.mark.parametrize("benchmark", SIDES, ids=lambda module: module.__name__)
def test_every_side_is_measured(benchmark, tmp_path, monkeypatch, capsys):
    path = tmp_path / "table.json"
    monkeypatch.setitem(steps.PRESETS, "cpu", tiny_config(tmp_path))
    monkeypatch.setattr(sys, "argv", ["benchmark", "--repetitions", "2", "--json", str(path)])
    benchmark.main()
    rows = json.loads(path.read_text())["rows"]
    assert [row["side"] for row in rows] == SIDES[benchmark]
    assert all(0 < row["fastest"] <= row["median"] <= row["slowest"] for row in rows)
    shown = capsys.readouterr().out
    assert all(side in shown for side in SIDES[benchmark])
