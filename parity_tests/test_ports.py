"""The ports of benchmarks/porting are what they say, and the benchmark counts them rightly."""

import itertools
import json
from types import SimpleNamespace

import jax
import pytest

from benchmarks.porting import __main__ as benchmark
from benchmarks.porting.agreement import measure
from benchmarks.porting.case import FOLDERS, Case, Fault, load
from benchmarks.porting.score import score, table

OWN_MODELS = {"gpt", "encoder", "bert", "falcon"}
"""Families of jaxformer's own models."""
QUICK = {
    ("mixer", "vmapped"),
    ("recurrent", "gates in another order"),
    ("mamba", "no gradient through the states"),
}
NAMED = (
    ("ports", "autoencoder", "norm over the channels"),
    ("ports", "gpt", "positions from one"),
    ("ports", "llama", "untied head"),
    ("ports", "llama", "keys tiled over heads"),
    ("ports", "wavenet", "time before channels"),
    ("ports_blind", "bert", "no bias of the vocabulary"),
    ("ports_blind", "crnn", "pads not counted"),
    ("ports_blind", "densenet", "maximum between the blocks"),
    ("ports_blind", "falcon", "scores divided by the size"),
    ("ports_blind", "gat", "no edges filled with zero"),
    ("ports_blind", "perceiver", "vmapped over examples"),
    ("ports_blind", "siamese", "a gradient through the target"),
    ("ports_blind", "siamese", "a view compared with itself"),
    ("ports_blind", "siamese", "labels one place on"),
    ("ports_blind", "siamese", "no temperature"),
    ("ports_blind", "swin", "shifted windows not masked"),
    ("ports_blind", "tcn", "dilations of one"),
    ("ports_blind", "vae", "mean of the squares"),
    ("ports_blind", "vae", "transposed kernels not flipped"),
    ("ports_blind", "vae", "no gradient to the encoder"),
)
"""Ports that are judged in seconds, of many families, styles and causes."""
CARRIED = (
    ("ports", "autoencoder", "norm over the channels"),
    ("ports", "gpt", "positions from one"),
    ("ports", "llama", "tied"),
    ("ports", "mixer", "one square kernel transposed"),
    ("ports", "recurrent", "LSTM of one kernel"),
    ("ports_blind", "bert", "no bias of the vocabulary"),
    ("ports_blind", "gat", "a kernel for each head"),
    ("ports_blind", "vae", "two heads and flipped kernels"),
)
"""Ports that are judged with weights of their own: fused, split, stacked, summed, flipped, tied."""
PORTS = [
    pytest.param(
        case,
        id=f"{folder}-{family}-{case.name}",
        marks=() if (family, case.name) in QUICK else pytest.mark.slow,
    )
    for folder in FOLDERS
    for family, cases in load(folder).items()
    for case in cases
]


@pytest.mark.optimized  # without, the gradient of a maximum can miss the place of the maximum
@pytest.mark.parametrize("case", PORTS)
def test_a_right_port_agrees_and_a_wrong_one_does_not(case):
    error = max(measure(case))
    if case.faults:
        assert error > 1e-4
    else:
        assert error <= (1e-5 if case.float32 else 1e-9)


@pytest.mark.parametrize(("folder", "family", "name"), NAMED)
def test_a_fault_is_named_in_its_layer(folder, family, name):
    (case,) = [case for case in load(folder)[family] if case.name == name]
    row = benchmark.run(case, "loaded")
    assert benchmark.verdict(row) == ("named" if case.faults else "silent"), row["reported"]


@pytest.mark.parametrize(("folder", "family", "name"), CARRIED)
def test_a_fault_is_named_with_carried_weights(folder, family, name):
    (case,) = [case for case in load(folder)[family] if case.name == name]
    row = benchmark.run(case, "fresh")
    assert benchmark.verdict(row) == ("named" if row["faults"] else "silent"), row["reported"]


@pytest.mark.parametrize("case", PORTS)
def test_faults_name_modules_of_the_original(case):
    modules = [name for name, _ in case.torch().named_modules()]
    for fault in case.faults:
        for pattern in (fault.module, *fault.also):
            assert any(Fault(pattern, ()).is_at(name) for name in modules), pattern


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_ports_are_of_many_kinds(folder):
    families = load(folder)
    cases = [case for part in families.values() for case in part]
    faulty = [case for case in cases if case.faults]
    assert len(cases) >= 36
    assert len(faulty) >= 26
    assert len(cases) - len(faulty) >= 10
    assert len({fault.words[0] for case in faulty for fault in case.faults}) >= 24
    assert sum(len(case.faults) > 1 for case in faulty) >= 2
    assert {case.style for case in cases} == {"nnx", "linen", "function", "pytree"}
    assert len(families.keys() - OWN_MODELS) >= 8
    assert 3 * sum(len(families[family]) for family in OWN_MODELS & families.keys()) <= len(cases)
    for family, part in families.items():
        assert len({case.name for case in part}) == len(part), family


def test_fresh_weights_have_the_shapes_of_the_loaded_ones():
    case = load("ports")["mixer"][0]
    loaded, fresh = jax.tree.leaves(case.jax()), jax.tree.leaves(case.fresh())
    assert [x.shape for x in loaded] == [x.shape for x in fresh]
    assert not any((a == b).all() for a, b in zip(loaded, fresh, strict=True))


def report(module, cause=None):
    return SimpleNamespace(torch=module, cause=cause, error=0.5)


EPSILON = Fault("layers.*.norm", ("epsilon",))
RESIDUAL = Fault("layers.2", ("residual", "activation"), also=("",))


@pytest.mark.parametrize(
    ("faults", "found", "layers", "causes", "extra"),
    [
        ([], [], 0, 0, 0),
        ([], [report("head")], 0, 0, 1),
        ([EPSILON], [], 0, 0, 0),
        ([EPSILON], [report("layers.0.norm"), report("layers.1.norm", "epsilon")], 1, 1, 0),
        ([EPSILON], [report("layers.0.norm", "norm-axis")], 1, 0, 0),
        ([EPSILON], [report("layers.0.norm", "epsilon"), report("head")], 0, 0, 1),
        ([EPSILON], [report("layers.0.mlp.norm", "epsilon")], 0, 0, 1),
        ([EPSILON, RESIDUAL], [report("", "activation")], 1, 1, 0),
        ([EPSILON, RESIDUAL], [report("layers.1.norm"), report("layers.2", "epsilon")], 2, 0, 0),
    ],
)
def test_a_score_counts_each_fault_once_and_none_beside_an_extra_one(
    faults, found, layers, causes, extra
):
    counted = {"faults": len(faults), "layers": layers, "causes": causes, "extra": extra}
    assert score(faults, found) == counted


def row(**changes):
    counts = {"faults": 1, "layers": 1, "causes": 1, "extra": 0, "error": None, "seconds": 1.0}
    names = {"folder": "ports", "weights": "loaded", "family": "a", "case": "b", "style": "nnx"}
    return {**names, **counts, **changes}


def test_the_first_result_of_a_port_stays_beside_the_last():
    rows = benchmark.merged([], row(layers=0, causes=0))
    rows = benchmark.merged(rows, row(case="correct", faults=0, layers=0, causes=0, extra=2))
    rows = benchmark.merged(rows, row())
    text = table(rows)
    first = "1 of 1 (first 0 of 1)"
    assert f"| nnx | 2 | {first} | - | {first} | - | - | - | 1 of 1 | - | 0 | - |" in text
    assert len(rows) == 2


def test_the_benchmark_writes_what_it_found(tmp_path, monkeypatch, capsys):
    broken = Case("broken", "function", None, None, None, (EPSILON,))
    right = Case("right", "function", None, None, None)
    answers = itertools.chain([RuntimeError("no such thing\nat all"), []])

    def divergence(port, model, inputs, carry):
        assert (port, model, inputs, carry) == ("port", "model", "inputs", False)
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return SimpleNamespace(faults=answer)

    monkeypatch.setattr("jaxformer.porting.divergence", divergence, raising=False)
    monkeypatch.setattr(Case, "jax", lambda case: "port")
    cases = [
        Case(case.name, "function", lambda: "model", None, lambda: "inputs", case.faults)
        for case in (broken, right)
    ]
    monkeypatch.setattr(
        benchmark, "load", lambda folder: {"family": cases} if folder == "ports" else {}
    )
    assert benchmark.main(["--output", str(tmp_path)]) == 1
    rows = json.loads((tmp_path / "porting.json").read_text())["ports"]
    assert [r["error"] for r in rows] == ["RuntimeError: no such thing", None]
    assert (
        "| family | 2 | 0 of 1 | - | 0 of 1 | - | - | - | 0 of 1 | - | 1 | - |"
        in (tmp_path / "porting.md").read_text()
    )
    assert "family: right: silent" in capsys.readouterr().out
    assert benchmark.main(["--output", str(tmp_path), "--family", "nobody"]) == 2
