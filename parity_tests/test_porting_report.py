"""The report of `divergence`: the tree with the errors of all modules, its text and its page."""

import dataclasses
import json
import re
import shlex
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jax
import jax.numpy as jnp
import pytest

from jaxformer.cli import divergence as command
from jaxformer.errors import UserError
from jaxformer.porting import Fault, Layer, Report, divergence
from jaxformer.porting.page import as_html
from jaxformer.porting.tree import tree
from parity_tests.test_porting import Original, inputs, params, port

TESTS = Path(__file__).with_name("test_porting.py")
FACTORIES = {"torch": "Original", "inputs": "inputs"}


@pytest.fixture(scope="module")
def wrong() -> Report:
    """Another epsilon in the first module, and no residual around the next two."""
    mine = partial(port, eps=1e-3, residual=False), params()
    return divergence(mine, Original(), inputs())


def test_every_module_has_its_error_as_the_port_runs_and_by_itself(wrong: Report) -> None:
    layers = {layer.torch: layer for layer in wrong.layers}
    assert list(layers) == ["", "norm", "up", "down", "head"]
    assert layers["norm"].cause == "epsilon"
    assert layers["norm"].own == layers["norm"].error > 1e-4
    for name in ("up", "down"):  # receive the norm's error and add none
        assert layers[name].error > 1e-4 > 1e-13 > layers[name].own
        assert layers[name].cause is None
    assert layers[""].cause == "residual"
    assert wrong.compared["modules"] == wrong.compared["all_modules"] == 5


def test_what_agrees_is_said_in_one_line_and_how_much_was_compared() -> None:
    report = divergence((port, params()), Original(), inputs())
    assert "\n" not in str(report)
    assert f"{report.error:.1e}" in str(report)
    assert "modules 5 of 5, values 6 of 6" in str(report)
    assert all(layer.error == layer.own < 1e-13 for layer in report.layers)


def test_what_rounding_of_float32_explains_has_its_own_error() -> None:
    def rounded(p: Any, x: jax.Array) -> jax.Array:
        y = port(p, x)
        return y + jax.lax.stop_gradient(2e-8 * jnp.sin(1e3 * y))

    report = divergence((rounded, params()), Original(), inputs())
    assert report.ok
    model, *others = report.layers
    assert model.own == pytest.approx(report.error)
    assert model.error == report.error > 1e-9
    assert all(layer.own == layer.error < 1e-13 for layer in others)


def blocks(number: int, faulty: tuple[int, ...] = ()) -> list[Layer]:
    layers = [Layer("", "Net", "net.py:9", 0.5, 1e-16), Layer("stem", "Linear", "a", 1e-16, 1e-16)]
    for i in range(number):
        inherited = 0.5 if faulty and i >= faulty[0] else 1e-16
        layers.append(Layer(f"h.{i}", "Block", "a", inherited, 1e-16))
        cause = "gelu" if i in faulty else None
        layers.append(Layer(f"h.{i}.mlp", "MLP", "a", inherited, 0.1 * (i + 1), cause))
    return layers


@pytest.mark.parametrize(
    ("faulty", "labels"),
    [
        ((), ["h.0-5"]),
        ((2,), ["h.0-1", "h.2", "h.3-5"]),
        ((3, 4, 5), ["h.0-2", "h.3-5"]),
    ],
)
def test_equal_layers_in_a_row_are_one_row(faulty: tuple[int, ...], labels: list[str]) -> None:
    (root,) = tree(blocks(6, faulty), 1e-9)
    assert [node.label for node in root.inside] == ["stem", *labels]
    assert [node.inside[0].label for node in root.inside[1:]] == ["mlp"] * len(labels)
    last = root.inside[-1].inside[0]
    assert last.layer.own == 0.1 * 6  # the worst of the group
    (whole,) = tree(blocks(6, faulty), 1e-9, whole=True)
    assert len(whole.inside) == 7


def test_a_gradient_at_fault_is_no_error_of_the_output() -> None:
    layer = Layer("a", "Block", "b", 1e-16, 1e-16)
    gradient = Fault("a", "b", "param_grad", 0.3, 1e-7, None, "")
    assert layer.at_fault(gradient).error == layer.at_fault(gradient).own == 1e-16
    output = dataclasses.replace(gradient, quantity="output")
    assert layer.at_fault(output).error == layer.at_fault(output).own == 0.3
    assert layer.at_fault(output).cause == ""


@pytest.mark.parametrize(
    ("compared", "words"),
    [
        ({"outputs": 0}, "not compared"),
        ({"outputs": 1, "weights": 0}, "not compared"),
        ({"outputs": 1, "weights": 3}, "the outputs differ by 1.0e-05"),
        ({"outputs": 1}, "the outputs differ by 1.0e-05"),
    ],
)
def test_without_a_fault_it_is_said_whether_anything_was_compared(
    compared: dict[str, int], words: str
) -> None:
    assert str(Report(False, [], 1e-5, 1e-9, compared)).startswith(words)


def test_layers_that_inherit_an_error_are_no_row_with_those_that_do_not() -> None:
    names = [f"h.{i}" for i in range(4)]
    errors = [1e-17, 1e-16, 0.5, 0.4]
    row = [Layer(name, "Block", "a", e, 1e-16) for name, e in zip(names, errors, strict=True)]
    found = {node.label: node.layer.error for node in tree(row, 1e-9)}
    assert found == {"h.0-1": 1e-16, "h.2-3": 0.5}


def test_the_tree_marks_what_is_at_fault() -> None:
    faults = [Fault("h.2.mlp", "mlp", "output", 0.3, 1e-9, "gelu", "why", "t.py:1", "j.py:2")]
    text = str(Report(False, faults, 0.5, 1e-9, {"outputs": 1}, ["a note"], blocks(6, (2,))))
    marked = [line for line in text.splitlines() if line.startswith("  > ")]
    assert [line.split()[3:5] for line in marked] == [["mlp:", "gelu"]]
    assert re.search(r"^ +5\.0e-01 +1\.0e-16  +h\.3-5 ", text, re.MULTILINE)
    assert text.splitlines()[0] == "the port departs at h.2.mlp: gelu; compared outputs 1"
    assert text.splitlines()[-1] == "note: a note"
    for part in ("t.py:1", "j.py:2", "why"):
        assert part in text


class Page(HTMLParser):
    """The tags of a page that needs nothing else."""

    def __init__(self, text: str):
        super().__init__()
        self.rows: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "link", "img", "iframe")
        assert not any(name in ("src", "href") for name, _ in attrs)
        if tag == "tr" and attrs:
            self.rows.append(dict(attrs)["class"] or "")


def test_the_page_stands_alone_and_shows_every_module(wrong: Report) -> None:
    text = as_html(wrong)
    assert sorted(Page(text).rows) == ["fault", "fault", "inherits", "inherits", "inherits"]
    found = re.search("<svg.*</svg>", text, re.DOTALL)
    assert found
    svg = ElementTree.fromstring(found[0])
    heights = [(float(dot.get("cy", "nan")), dot.get("r")) for dot in svg.iter("circle")]
    assert len(heights) == 5
    assert [radius for _, radius in heights] == ["5", "2.5", "2.5", "2.5", "5"]
    assert heights[0][0] < heights[1][0]  # the larger error stands above
    for group in wrong.faults:
        assert group.evidence.partition(":")[0] in text


def test_a_page_escapes_what_it_shows() -> None:
    odd = [Layer("", "<lambda>", "<a&b>", 0.1, 0.1, "gelu")]
    faults = [Fault("", "<a&b>", "output", 0.1, 1e-9, "gelu", "1 < 2", "<t>", "<j>")]
    text = as_html(Report(False, faults, 0.1, 1e-9, {}, ["<note>"], odd))
    assert Page(text).rows == ["fault"]
    assert 'title="&lt;lambda&gt;"' in text
    for part in ("&lt;lambda&gt;", "&lt;a&amp;b&gt;", "1 &lt; 2", "&lt;note&gt;"):
        assert part in text


def test_the_command_writes_the_page_and_every_module(tmp_path: Path) -> None:
    words = [w for side in ("torch", "inputs") for w in (f"--{side}", f"{TESTS}:{FACTORIES[side]}")]
    file = tmp_path / "page.html"
    assert command.main(["--jax", f"{TESTS}:wrong", *words, "--html", str(file)]) == 1
    assert Page(file.read_text()).rows.count("fault") == 1
    json_file = tmp_path / "verdict.json"
    assert command.main(["--jax", f"{TESTS}:wrong", *words, "--json", str(json_file)]) == 1
    layers = json.loads(json_file.read_text())["layers"]
    assert [layer["cause"] for layer in layers] == [None, "epsilon", None, None, None]
    with pytest.raises(UserError, match="--html"):
        command.main(["--jax", f"{TESTS}:wrong", *words, "--html", str(tmp_path / "no" / "page")])


ROOT = Path(__file__).parent.parent
ROUNDING = re.compile(r"\b(0\.0e\+00|\d\.\de-1[4-9])\b")
"""Errors that differ from one processor to the next."""


@pytest.mark.parametrize("name", ["README.md", "docs/porting.md"])
def test_the_documents_show_what_the_command_prints(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    document = (ROOT / name).read_text(encoding="utf-8")
    monkeypatch.chdir(ROOT)
    examples = re.findall(r"^\$ jaxformer divergence (.*?[^\\])\n(.*?)^```", document, re.M | re.S)
    assert examples
    for words, printed in examples:
        assert command.main(shlex.split(words.replace("\\\n", ""))) == 1
        shown = capsys.readouterr().out
        assert ROUNDING.sub("rounding", shown) == ROUNDING.sub("rounding", printed)


def test_the_python_code_of_the_document_runs(capsys: pytest.CaptureFixture[str]) -> None:
    document = (ROOT / "docs" / "porting.md").read_text(encoding="utf-8")
    for block in re.findall(r"^```python\n(.*?)^```", document, re.MULTILINE | re.DOTALL):
        exec(block, {})
    assert "departs at the model itself: epsilon" in capsys.readouterr().out
