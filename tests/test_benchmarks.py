"""Benchmarks compare equal work, say what they leave out, and write down what they measured."""

import argparse
import dataclasses
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import decoding, gpu, growth, performance, training_sides
from benchmarks.comparison import Benchmark, Entrant, Figures, ratio, same_loss, same_tokens, table
from benchmarks.side import serve
from jaxformer.config import GPTConfig, TransformerConfig
from tests import benchmark_sides

SIZES = {
    "vocab_size": 1009,
    "context_length": 24,
    "width": 16,
    "num_heads": 2,
    "mlp_width": 20,
    "num_layers": 1,
}
CONFIGS = {
    "gpt": GPTConfig(**SIZES, dtype="float32"),
    "transformer": TransformerConfig(**SIZES, init_std=0.25),
}


def entrant(name, **settings):
    build = "sleeping" if settings else "failing"
    return Entrant(name, f"tests.benchmark_sides:{build}", settings)


def test_sides_are_checked_timed_in_turns_and_written_down(tmp_path, capsys):
    words = argparse.Namespace(repetitions=3, output=tmp_path / "results")
    benchmark = Benchmark("example", words)
    slow = {"seconds": 0.2, "count": 2}
    benchmark.compare(
        "first",
        [
            entrant("ours", seconds=0.002, loss=2.0),
            entrant("theirs", loss=2.00001, **slow),
            entrant("another", loss=2.1, **slow),
            entrant("broken"),
            Entrant("dying", "tests.benchmark_sides:dying", {"repetitions": 4}),
        ],
        same_loss("float32"),
        per_second={"all": {"tokens": 7}},
    )
    written = json.loads((words.output / "example.json").read_text())
    ours, theirs, another, broken, dying = written["cases"][0]["sides"]
    assert [len(row["seconds"]["all"]) for row in (ours, theirs)] == [3, 3]
    assert Figures.of(theirs).fastest >= 0.1  # of the two that a repetition does, one
    assert Figures.of(theirs, "half").median == pytest.approx(0.05)
    assert ratio(theirs, ours) > 1
    assert ours["peak_bytes"] >= 0
    assert another["error"] == "loss 2.100000, not 2.000000"
    assert "no compiler here" in broken["error"]
    assert "StopIteration" in dying["error"]
    assert benchmark.end() == 1
    shown = capsys.readouterr().out
    assert shown == f"{table(written)}\n" == (words.output / "example.md").read_text()
    assert "left out: loss 2.1" in shown
    assert "tokens/s" in shown


def test_a_served_side_answers_each_request_and_ends():
    answers = io.StringIO()
    settings = {"seconds": 0.01, "loss": 3.0, "count": 5}
    serve(benchmark_sides.sleeping, settings, io.StringIO("repeat\nend\nrepeat\n"), answers)
    about, seconds, last = map(json.loads, answers.getvalue().splitlines())
    assert about["check"] == [3.0]
    assert seconds["half"] == pytest.approx(0.001)
    assert seconds["all"] >= 0.002
    assert last["peak_bytes"] >= 0


def test_tokens_may_differ_where_rounding_decides():
    assert not same_tokens("float32")([1.0] * 19 + [2.0], [1.0] * 20)
    assert same_tokens("float32")([1.0] * 18 + [2.0] * 2, [1.0] * 20)
    assert same_tokens("float32")([1.0] * 10, [1.0] * 20)  # a side that stopped early


@pytest.mark.parametrize("model", CONFIGS)
def test_the_sides_of_a_train_step_compute_the_same_loss(model):
    told = {
        "model": model,
        "config": dataclasses.asdict(CONFIGS[model]),
        "batch_size": 3,
        "length": 7,
        "steps": 2,
    }
    sides = training_sides.jaxformer, training_sides.twin, training_sides.transformers
    work = [side(**told) for side in sides]
    for _ in range(2):  # the second loss, after updates
        ours, *others = [one() for one in work]
        assert ours.count == 2
        for other in others:
            assert other.check == pytest.approx(ours.check, rel=2e-5)
        if model == "transformer":
            break  # its Adam and schedule are those of 2017, theirs here AdamW


def test_a_checkout_of_nanogpt_is_a_side(monkeypatch):
    path = Path(__file__).parent / "nanogpt"
    monkeypatch.syspath_prepend(path)  # restores the path afterwards
    monkeypatch.delitem(sys.modules, "model", raising=False)
    config = dataclasses.replace(CONFIGS["gpt"], activation="gelu", mlp_width=64)
    told = {
        "model": "gpt",
        "config": dataclasses.asdict(config),
        "batch_size": 3,
        "length": 7,
        "steps": 1,
    }
    ours, theirs = training_sides.twin(**told), training_sides.nanogpt(**told, path=str(path))
    for _ in range(3):
        assert theirs().check == pytest.approx(ours().check, rel=2e-5)


@pytest.mark.parametrize("model", CONFIGS)
def test_the_sides_of_decoding_write_the_same_tokens(model):
    told = {"config": dataclasses.asdict(CONFIGS[model]), "batch_size": 2, "new_tokens": 4}
    builds = {
        "gpt": (decoding.greedy, decoding.greedy_transformers),
        "transformer": (decoding.beam, decoding.beam_transformers),
    }
    ours, theirs = (build(**told)() for build in builds[model])
    assert len(ours.check) == 2 * 4
    assert ours.check == theirs.check
    if model == "gpt":
        assert ours.seconds["first token"] > 0 < theirs.seconds["first token"]


def test_the_tables_of_the_document_are_those_of_the_results():
    document = performance.DOCUMENT.read_text(encoding="utf-8")
    assert performance.filled(document, performance.RESULTS) == document


def test_a_table_is_replaced_and_the_prose_stays(tmp_path):
    case = {"case": "c", "along": "depth", "value": 2, "sides": [row("a", 2.0), row("b", 3.0)]}
    results = {"command": "do", "about": {}, "cases": [case]}
    (tmp_path / "one.json").write_text(json.dumps(results))
    document = "before\n<!-- results: one -->\nold\n<!-- end -->\nbetween\n" * 2 + "after"
    found = performance.filled(document, tmp_path)
    assert performance.filled(found, tmp_path) == found
    assert found.count("between") == 2
    assert "old" not in found
    assert "| 1.50 |" in found
    assert performance.curves(results) == {"depth": {"a": [(2, 2e3, 1, 5)], "b": [(2, 3e3, 1, 5)]}}


def test_the_forms_of_attention_compute_the_same_loss(monkeypatch):
    monkeypatch.setattr(growth, "TOKENS", 192)
    plain, *others = (growth.causal_attention(form, 96)() for form in growth.FORMS)
    for other in others:
        assert other.check == pytest.approx(plain.check, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        "data_loading",
        "guard --case char-cpu",
        "deterministic --case char-cpu",
        "growth --along attention",
        "growth --along batch",
    ],
)
def test_each_benchmark_is_a_program(tmp_path, words):
    name, *rest = words.split()
    rest += ["--repetitions", "1", "--output", str(tmp_path)]
    command = [sys.executable, "-m", f"benchmarks.{name}", *rest]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    written = json.loads((tmp_path / f"{name}.json").read_text())
    sides = [side for case in written["cases"] for side in case["sides"]]
    assert len(sides) > 1
    assert all(side["seconds"]["all"] for side in sides)


@pytest.mark.slow
def test_what_is_measured_on_a_gpu_is_rehearsed_on_a_cpu(tmp_path):
    words = ["bash", "benchmarks/gpu.sh", "--rehearse", "--output", str(tmp_path)]
    environment = os.environ | {"PYTHON": sys.executable, "XLA_FLAGS": ""}
    done = subprocess.run(words, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout
    written = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    assert written.keys() == gpu.PARTS.keys()
    assert written["resume"]["equal_losses"] is written["resume"]["equal_parameters"] is True
    assert not written["float64"]["out_of_bounds"]
    assert all(model["used"]["state"] > 0 for model in written["plan"].values())


def row(side, seconds):
    return {
        "side": side,
        "device": "cpu",
        "seconds": {"all": [seconds]},
        "first_seconds": 5,
        "peak_bytes": 2**20,
    }
