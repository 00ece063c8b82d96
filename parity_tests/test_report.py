"""The report and its command: what it runs, what it writes, and its exit status."""

import io
import json
import math
import re
from typing import get_args

import pytest
from rich.console import Console

from jaxformer.cli import parity as command
from jaxformer.cli.main import main
from jaxformer.errors import UserError
from jaxformer.parity import report, show
from jaxformer.parity.engine.comparison import Comparison
from jaxformer.parity.progress import Progress
from jaxformer.parity.proofs import decoder_layers, layers
from jaxformer.parity.proofs.named_layers import LAYERS, Layer
from jaxformer.porting.compare import Row

CONTRACT = {"model", "layer", "quantity", "path", "dtype", "error", "bound", "ok"}
SINUSOID_BUG = next(
    bug for bug in report.BUGS["transformer"] if bug.layer == "sinusoidal_positions"
)


def failing(case):
    row = Row("gpt", "loss", "output", "x", case.dtype, math.inf, 1e-13, False)
    return Comparison.of([row])


def subject(*proofs):
    return lambda case: [(proof, case) for proof in proofs]


@pytest.fixture
def short(monkeypatch):
    """A report of two layers and one bug, and a way to add a proof."""

    def prove(*more):
        monkeypatch.setattr(
            report, "MODELS", {"gpt": (subject(layers.prove_masks, layers.prove_mlp, *more),)}
        )

    prove()
    monkeypatch.setattr(report, "BUGS", {"gpt": (SINUSOID_BUG,)})
    return prove


def run_command(argv, capsys):
    try:
        main(["parity", *argv])
    except SystemExit as stop:
        return stop.code, *capsys.readouterr()
    return 0, *capsys.readouterr()


def test_all_in_bounds_is_status_0_and_the_file_holds_every_row(short, tmp_path, capsys):
    path = tmp_path / "parity.json"
    status, out, _ = run_command(["--model", "gpt", "--json", str(path)], capsys)
    assert status == 0
    found = json.loads(path.read_text())
    assert found["ok"] is True
    assert {row["dtype"] for row in found["rows"]} == {"float64", "float32"}
    assert all(set(row) == CONTRACT and row["model"] == "gpt" for row in found["rows"])
    assert all(row["ok"] and row["error"] <= row["bound"] for row in found["rows"])
    assert found["bugs"] == {
        "planted": 1,
        "caught": 1,
        "named": 1,
        "findings": [
            {
                "name": SINUSOID_BUG.name,
                "layer": "sinusoidal_positions",
                "caught": True,
                "named": "sinusoidal_positions",
                "ok": True,
            }
        ],
    }
    assert found["settings"]["jax_default_matmul_precision"] == "highest"
    assert {entry["quantity"] for entry in found["summary"]} == {
        "output",
        "input_grad",
        "param_grad",
    }
    assert "1 bugs planted, 1 caught, 1 named by their layer" in out
    assert "all in bounds" in out
    assert [file.name for file in tmp_path.iterdir()] == ["parity.json"]


def test_one_row_out_of_bounds_is_status_1(short, tmp_path, capsys):
    short(failing)
    path = tmp_path / "parity.json"
    status, out, _ = run_command(["--dtype", "float64", "--json", str(path)], capsys)
    assert status == 1
    assert "NOT ALL IN BOUNDS" in out
    assert "OUT OF BOUNDS" in out
    found = json.loads(path.read_text())
    assert found["ok"] is False
    assert [row["error"] for row in found["rows"] if not row["ok"]] == [None]  # was infinite


def test_a_bug_that_is_not_caught_is_status_1(short, monkeypatch, capsys):
    harmless = SINUSOID_BUG._replace(proof=layers.prove_masks)
    monkeypatch.setattr(report, "BUGS", {"gpt": (harmless,)})
    status, out, _ = run_command(["--dtype", "float64"], capsys)
    assert status == 1
    assert "not caught" in out


def test_a_bug_located_in_another_layer_is_status_1(short, monkeypatch, capsys):
    monkeypatch.setattr(report, "BUGS", {"gpt": (SINUSOID_BUG._replace(layer="loss"),)})
    status, out, _ = run_command(["--dtype", "float64"], capsys)
    assert status == 1
    assert "located in sinusoidal_positions" in out


def test_only_the_bugs_of_the_model_are_planted(short, monkeypatch):
    monkeypatch.setattr(report, "MODELS", dict.fromkeys(("gpt", "bert"), report.MODELS["gpt"]))
    bugs = {name: (SINUSOID_BUG._replace(name=f"bug of {name}"),) for name in ("gpt", "bert")}
    monkeypatch.setattr(report, "BUGS", bugs)
    for model, names in (("bert", ["bug of bert"]), ("all", ["bug of gpt", "bug of bert"])):
        found = report.run(model, ["float64"], print)
        assert [mutant.name for mutant in found.mutants] == names


def test_what_models_share_belongs_to_each_and_is_proven_and_planted_once():
    for names in (["gpt"], ["transformer"], ["bert"], ["decoder"], list(report.MODELS)):
        planted, proven = report.bugs_of(names), list(report.proofs_of(names, "float64"))
        assert len({bug.name for bug in planted}) == len(planted)
        assert set(planted) == {bug for name in names for bug in report.BUGS[name]}
        assert len({step for _, step in proven}) == len(proven)
        assert {step for _, step in proven} == {
            step
            for name in names
            for subject in report.MODELS[name]
            for step in subject(report.Case(report.TINY, jit=False))
        }
    shared = set.intersection(*map(set, report.BUGS.values()))
    assert {"layer_norm", "attention_function", "mlp", "loss", "step"} <= {b.layer for b in shared}
    assert not any(bug.name.startswith("BERT") for bug in report.BUGS["gpt"])
    assert SINUSOID_BUG not in report.BUGS["gpt"]


@pytest.mark.parametrize("model", report.MODELS)
def test_every_layer_has_proofs_and_bugs_of_its_own(model):
    for layer in report.layers_of([model]):
        proofs = {proof for _, (proof, _) in report.proofs_of([model], "float32", layer)}
        assert proofs == set(LAYERS[layer].proofs)
        assert report.bugs_of(report.MODELS, layer)


def test_every_proof_of_a_single_layer_has_a_name():
    subjects = (
        layers.proofs,
        layers.position_proofs,
        layers.transformer_proofs,
        decoder_layers.proofs,
    )
    case = report.Case(report.TINY, "float32", jit=False)
    proven = {proof for subject in subjects for proof, _ in subject(case)}
    assert proven == {proof for layer in LAYERS.values() for proof in layer.proofs}


def test_one_layer_is_proven_with_its_bugs_alone(tmp_path, capsys):
    path = tmp_path / "parity.json"
    words = ["--layer", "sinusoidal_positions", "--dtype", "float64", "--json", str(path)]
    status, _, _ = run_command(words, capsys)
    found = json.loads(path.read_text())
    assert status == 0
    assert {row["layer"] for row in found["rows"]} == {"sinusoidal_positions"}
    assert [bug["layer"] for bug in found["bugs"]["findings"]] == ["sinusoidal_positions"]


def test_one_layer_out_of_bounds_is_status_1(monkeypatch, capsys):
    broken = Layer((failing,), "sinusoidal_positions")
    monkeypatch.setitem(LAYERS, "broken", broken)
    monkeypatch.setitem(report.MODELS, "gpt", (subject(failing),))
    status, out, _ = run_command(["--layer", "broken", "--dtype", "float64"], capsys)
    assert status == 1
    assert "1 bugs planted, 1 caught, 1 named" in out


@pytest.mark.parametrize(
    ("argv", "names"),
    [
        (["--layer", "atention"], ["attention", "decoder_block", "layer_norm"]),
        (["--layer", "decoder_block", "--model", "bert"], ["attention", "positions", "block"]),
    ],
)
def test_a_layer_that_is_not_there_lists_those_of_the_model(argv, names, capsys):
    status, out, err = run_command(argv, capsys)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert f"--layer {argv[1]}" in err
    assert set(names) <= set(re.split(r"[\s,]+", err))
    assert ("cross_attention," in err) == ("--model" not in argv)


def test_what_would_compare_nothing_is_refused(monkeypatch, capsys):
    status, out, err = run_command(["--layer", "flash_attention", "--dtype", "float64"], capsys)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert all(word in err for word in ("flash_attention", "float64", "float32 or bfloat16"))
    monkeypatch.setattr(report, "BFLOAT16_SUBJECTS", ())
    for model in report.MODELS:
        status, out, err = run_command(["--model", model, "--dtype", "bfloat16"], capsys)
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert all(word in err for word in (f"--model {model}", "bfloat16", "float64 or float32"))


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_progress_that_is_piped_is_a_line_now_and_then_with_numbers():
    stream, clock = io.StringIO(), Clock()
    with Progress(stream, clock) as progress:
        for done in range(12):
            progress(done, 12, f"gpt float64 proof {done}")
            clock.now += 4.0
    assert stream.getvalue().splitlines() == [
        "proving 0/12 · 0:00 elapsed · gpt float64 proof 0",
        "proving 3/12 · 0:12 elapsed · 0:36 left · gpt float64 proof 3",
        "proving 6/12 · 0:24 elapsed · 0:24 left · gpt float64 proof 6",
        "proving 9/12 · 0:36 elapsed · 0:12 left · gpt float64 proof 9",
    ]


def test_progress_on_a_terminal_has_the_same_numbers(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    stream, clock = Terminal(), Clock()
    with Progress(stream, clock) as progress:
        clock.now = 4.0
        progress(2, 6, "gpt float64 [mlp]")
    assert "2/6 · 0:04 elapsed · 0:08 left · gpt float64 [mlp]" in stream.getvalue()


def test_progress_counts_every_proof_and_bug(short):
    calls = []
    report.run("gpt", ["float64"], lambda *call: calls.append(call))
    assert [done for done, _, _ in calls] == list(range(3))
    assert {total for _, total, _ in calls} == {3}
    assert calls[0][2] == "gpt float64 masks"
    assert SINUSOID_BUG.name in calls[-1][2]


def test_every_model_has_proofs_and_bugs():
    assert report.MODELS.keys() == report.BUGS.keys()
    assert all(report.MODELS.values())
    assert all(report.BUGS.values())


def test_no_bugs_at_all_is_not_ok():
    good = Row("gpt", "mlp", "output", "x", "float64", 0.0, 1.0, True)
    assert not report.Report([good], [], {}).ok


def test_bfloat16_is_proven_where_there_is_a_float64_truth(short, monkeypatch, capsys):
    monkeypatch.setattr(report, "BFLOAT16_SUBJECTS", report.MODELS["gpt"])
    status, out, _ = run_command(["--dtype", "bfloat16"], capsys)
    assert status == 0
    assert "bfloat16" in out


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--model", "llama"], "--model: 'llama' is none of"),
        (["--dtype", "float16"], "--dtype: 'float16' is none of"),
        (["--json", "nowhere/p.json"], "--json nowhere/p.json"),
        (["--json", "."], "--json . "),
    ],
)
def test_bad_input_is_one_line_and_status_2(argv, expected, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    status, out, err = run_command(argv, capsys)
    assert status == 2
    assert out == ""
    assert expected in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_every_model_that_can_be_asked_for_is_there_and_no_other():
    asked = get_args(command.ParityArguments.__annotations__["model"])
    assert asked == (*report.MODELS, "all")
    with pytest.raises(UserError, match="--model llama is unknown: choose gpt, transformer"):
        report.run("llama", ["float64"], print)


def test_without_pytorch_the_line_names_the_extra_to_install(monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    status, _, err = run_command([], capsys)
    assert status == 2
    assert 'pip install "jaxformer[torch]"' in err


def test_every_quantity_of_the_contract_is_proven_of_gpt():
    quantities = {"output", "input_grad", "param_grad", "update", "dropout", "tokens", "resume"}
    proofs = [
        proof.__name__
        for subject in report.MODELS["gpt"]
        for proof, _ in subject(report.Case(report.TINY))
    ]
    assert {"prove_gpt", "prove_gpt_dropout", "prove_training", "prove_generate"} <= set(proofs)
    assert "prove_resume" in proofs
    assert quantities == set(report.Row.__annotations__["quantity"].__args__)


def test_the_table_marks_what_is_out_of_bounds():
    bad = Row("gpt", "blocks.3.mlp.up", "output", "x", "float64", 0.5, 1e-13, False)
    reported = Row("gpt", "training", "update", "x", "float32", 1e-6, None, True)
    console = Console(file=io.StringIO(), width=100)
    show.show(report.Report([bad, bad._replace(error=0.1), reported], [], {}), console)
    text = console.file.getvalue()
    assert "blocks.*.mlp" in text
    assert "5.0e-01 NO" in text
    assert "reported" in text
    assert command.DESCRIPTION.endswith("hold.")


def worst_of(*values):
    """The summary of rows with these errors and bounds, by quantity."""
    rows = [
        Row("gpt", "mlp", "output", f"{error} of {bound}", "float64", error, bound, ok)
        for error, bound, ok in values
    ]
    return [entry["path"] for entry in show.as_json(report.Report(rows, [], {}))["summary"]]


def test_the_worst_is_nearest_to_its_bound_whatever_its_error():
    small, large = (4e-14, 1e-13, True), (1e-6, 2e-5, True)
    assert worst_of(large, small) == ["4e-14 of 1e-13"]
    assert worst_of((0.0, 0.0, True), large, small) == ["4e-14 of 1e-13"]


def test_what_is_out_of_bounds_is_worse_than_what_is_not_and_an_equality_missed_the_worst():
    near, beyond, unequal = (9e-14, 1e-13, True), (2e-13, 1e-13, False), (1.0, 0.0, False)
    assert worst_of(near, beyond) == ["2e-13 of 1e-13"]
    assert worst_of((1.0, 1e-13, False), unequal, beyond) == ["1.0 of 0.0"]


def test_what_is_only_reported_neither_hides_a_bounded_value_nor_is_hidden():
    assert set(worst_of((7.0, None, True), (3e-6, 1e-5, True), (2.0, None, True))) == {
        "7.0 of None",
        "3e-06 of 1e-05",
    }


def test_of_a_layer_too_the_worst_is_a_bounded_value():
    row = Row("gpt", "mlp", "output", "x", "float64", 3e-6, 1e-5, True)
    console = Console(file=io.StringIO(), width=110)
    found = report.Report([row, row._replace(error=7.0, bound=None)], [], {})
    show.show(found, console)
    by_layer, _, _ = console.file.getvalue().partition("Worst of each quantity")
    assert "3.0e-06" in by_layer
    assert "7.0e+00" not in by_layer
