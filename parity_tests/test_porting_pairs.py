"""`--pair` says which place of a port makes the output of a module, and overrides the values."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from jaxformer.cli import divergence as command
from jaxformer.errors import UserError
from jaxformer.porting import divergence
from jaxformer.porting.mapping import parse_pairs
from parity_tests.test_porting import Original, build, inputs, params, port

TESTS = Path(__file__).with_name("test_porting.py")


def line(text: str) -> str:
    """The place of a line of test_porting.py."""
    lines = TESTS.read_text().splitlines()
    return f"{TESTS.name}:{next(i for i, x in enumerate(lines) if text in x) + 1}"


NORM = line("y = (x - mean)")


def faulty() -> Any:
    """Another epsilon, and wrong weights in the next layer: nothing agrees between the two."""
    p = params()
    return partial(port, eps=1e-3), {**p, "up.weight": 1.1 * p["up.weight"] + 0.1}


def test_a_pair_parts_two_faults_between_which_no_value_agrees() -> None:
    (both,) = divergence(faulty(), Original(), inputs()).faults
    assert both.torch == ""
    first, second = divergence(faulty(), Original(), inputs(), pairs={"norm": NORM}).faults
    assert (first.torch, first.cause) == ("norm", "epsilon")
    assert second.torch == "up"


@pytest.mark.parametrize(("style", "place"), [("nnx", "n"), ("linen", "norm")])
def test_a_module_of_the_port_is_named_by_its_path(style: str, place: str) -> None:
    report = divergence(build(style, 1e-3), Original(), inputs(), pairs={"norm": place})
    assert [(fault.torch, fault.cause) for fault in report.faults] == [("norm", "epsilon")]
    assert divergence(build(style, 1e-5), Original(), inputs(), pairs={"norm": place}).ok


def test_a_pair_overrides_what_the_values_say() -> None:
    """The up projection is said to be the gelu behind it: it differs, and the outputs agree."""
    pairs = {"up": line("y = jax.nn.gelu")}
    report = divergence((port, params()), Original(), inputs(), pairs=pairs)
    layers = {layer.torch: layer for layer in report.layers}
    assert report.ok
    assert layers["up"].error > 0.1 > 1e-13 > layers["down"].error
    assert "up is paired with" in report.notes[-1]


def test_the_place_of_a_pair_is_the_fault_even_if_another_is_more_similar() -> None:
    place = line("x = x + y if residual")
    mine = partial(port, eps=1e-3), params()
    fault = divergence(mine, Original(), inputs(), pairs={"norm": place}).faults[0]
    assert fault.torch == "norm"
    assert fault.jax_line.endswith(place)


@pytest.mark.parametrize(
    ("pair", "words"),
    [
        ("nrom=" + NORM, ["nrom", "norm"]),
        ("norm=nowhere", ["norm=nowhere"]),
        ("norm=" + NORM.removeprefix("test_"), [NORM.removeprefix("test_")]),
        ("norm=test_porting.py:1", ["test_porting.py:1"]),
        ("norm=" + line("return x @ p"), []),
        ("up=" + NORM, ["(3, 5, 6)"]),
        ("norm", ["'norm'", "MODULE=PLACE"]),
        ("=" + NORM, ["MODULE=PLACE"]),
    ],
)
def test_pairs_that_cannot_be_are_refused(pair: str, words: list[str]) -> None:
    sides = {"jax": "right", "torch": "Original", "inputs": "inputs"}
    flags = [word for side, name in sides.items() for word in (f"--{side}", f"{TESTS}:{name}")]
    if not words:  # of the right size, and the port agrees
        assert command.main([*flags, "--pair", pair]) == 0
        return
    with pytest.raises(UserError, match="--pair") as refused:
        command.main([*flags, "--pair", pair])
    assert all(word in str(refused.value) for word in words)


def test_a_module_has_one_pair() -> None:
    assert parse_pairs(["a.b=c.py:1", "d=e=f"]) == {"a.b": "c.py:1", "d": "e=f"}
    with pytest.raises(UserError, match="a"):
        parse_pairs(["a=b", "a=c"])
