"""The report and its command: what it runs, what it writes, and its exit status."""

import io
import json
import math
from typing import get_args

import pytest
from rich.console import Console

from jaxformer.cli import parity as command
from jaxformer.cli.main import main
from jaxformer.errors import UserError
from jaxformer.parity import report, show
from jaxformer.parity.engine.comparison import Comparison
from jaxformer.parity.proofs import layers
from jaxformer.porting.compare import Row

CONTRACT = {"model", "layer", "quantity", "path", "dtype", "error", "bound", "ok"}
SINUSOID_BUG = next(bug for bug in report.BUGS["gpt"] if bug.layer == "sinusoidal_positions")


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
        (["--json", "nowhere/p.json"], "nowhere is not a directory: create it first"),
        (["--json", "."], ". is a directory: name a file"),
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
    with pytest.raises(UserError, match="no llama model to prove yet: choose gpt, transformer"):
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
