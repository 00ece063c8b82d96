"""`divergence` finds what is wrong with tiny ports in four styles, and is silent on right ones."""

import dataclasses
import json
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen, nnx

from jaxformer.cli import divergence as command
from jaxformer.errors import UserError
from jaxformer.porting import assert_layer, assert_port, divergence

WIDTH, INNER = 6, 11


class Original(torch.nn.Module):
    """A norm, two layers, a gelu and a residual."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm = torch.nn.LayerNorm(WIDTH)
        self.up = torch.nn.Linear(WIDTH, INNER)
        self.down = torch.nn.Linear(INNER, WIDTH)
        self.head = torch.nn.Linear(WIDTH, WIDTH)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.down(torch.nn.functional.gelu(self.up(self.norm(x))))
        return self.head(x)


def inputs() -> Any:
    return (np.random.default_rng(0).standard_normal((3, 5, WIDTH)).astype(np.float32),)


def params() -> dict[str, Any]:
    state = {name: jnp.asarray(x.detach().numpy()) for name, x in Original().named_parameters()}
    return {k: v.T if v.ndim == 2 else v for k, v in state.items()}


def port(
    p: Any,
    x: jax.Array,
    eps: float = 1e-5,
    exact: bool = True,
    residual: bool = True,
    stop: bool = False,
) -> jax.Array:
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    y = (x - mean) / jnp.sqrt(var + eps) * p["norm.weight"] + p["norm.bias"]
    y = jax.nn.gelu(y @ p["up.weight"] + p["up.bias"], approximate=not exact)
    y = y @ p["down.weight"] + p["down.bias"]
    y = jax.lax.stop_gradient(y) if stop else y
    x = x + y if residual else y
    return x @ p["head.weight"] + p["head.bias"]


@pytest.mark.parametrize(
    ("changes", "modules"),
    [
        ({}, []),
        ({"eps": 1e-3}, ["norm"]),
        ({"exact": False}, [""]),
        ({"eps": 1e-3, "exact": False}, ["norm", ""]),
        ({"stop": True}, ["down"]),
    ],
)
def test_faults_of_a_function_are_located(changes: Any, modules: list[str]) -> None:
    report = divergence((partial(port, **changes), params()), Original(), inputs())
    assert [fault.torch for fault in report.faults] == modules
    assert report.ok == (not modules)


def test_two_faults_of_one_module_are_both_named() -> None:
    mine = partial(port, exact=False, residual=False), params()
    faults = divergence(mine, Original(), inputs()).faults
    assert [(fault.torch, fault.cause) for fault in faults] == [("", "gelu"), ("", "residual")]


def test_leaves_and_inputs_of_one_name_are_told_apart() -> None:
    """Those of a list are named 0, 1, ..., like the positional inputs."""
    theirs = torch.nn.Linear(WIDTH, WIDTH)
    listed = [theirs.weight.detach().numpy().T, theirs.bias.detach().numpy()]
    report = divergence((lambda p, x: x @ p[0] + p[1], listed), theirs, inputs())
    assert report.ok
    assert report.compared["gradients"] == 3  # kernel, bias, input


class Scalar(Original):
    """A loss whose target is detached, and a term that reads the inputs alone."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = super().forward(x)
        return ((y - y.detach().roll(1)) ** 2).mean() + (x**3).mean()


def scalar(p: Any, x: jax.Array, target: Any, term: Any) -> jax.Array:
    y = port(p, x)
    return ((y - jnp.roll(target(y), 1)) ** 2).mean() + (term(x) ** 3).mean()


def test_gradients_of_a_scalar_and_of_inputs_are_compared() -> None:
    def compare(target: Any, term: Any) -> Any:
        mine = partial(scalar, target=target, term=term)
        return divergence((mine, params()), Scalar(), inputs())

    def same(x: Any) -> Any:
        return x

    def stop(x: Any) -> Any:
        return jax.lax.stop_gradient(x)

    report = compare(stop, same)
    assert report.ok
    assert report.compared["gradients"] == len(params()) + 1

    (passed,) = compare(same, same).faults
    assert (passed.cause, passed.quantity) == ("stopped-gradient", "param_grad")
    assert "test_porting.py" in passed.torch_line

    (stopped,) = compare(stop, lambda x: jax.lax.stop_gradient(x)).faults
    assert (stopped.cause, stopped.quantity) == ("stopped-gradient", "input_grad")
    assert "without it all gradients agree" in stopped.evidence

    # A wrong rule of the port's own: its stop_gradient, which PyTorch has too, is not to blame.
    doubled = jax.custom_vjp(same)
    doubled.defvjp(lambda x: (x, None), lambda _, g: (2 * g,))
    (wrong,) = compare(stop, doubled).faults
    assert (wrong.cause, wrong.quantity) == (None, "input_grad")


def test_equal_tensors_are_no_copies_of_one() -> None:
    """Gains of one everywhere: a wrong gradient of one of them does not untie anything."""

    def two(p: Any, x: jax.Array, wrong: float) -> jax.Array:
        gain = p["first"] * wrong + jax.lax.stop_gradient(p["first"] * (1 - wrong))
        return (x * gain) @ p["kernel"] * p["second"]

    theirs = torch.nn.Sequential(Gain(), torch.nn.Linear(WIDTH, WIDTH, bias=False), Gain())
    leaves = {"first": np.ones(WIDTH, np.float32), "second": np.ones(WIDTH, np.float32)}
    leaves["kernel"] = theirs[1].weight.detach().numpy().T
    assert divergence((partial(two, wrong=1.0), leaves), theirs, inputs()).ok
    (fault,) = divergence((partial(two, wrong=0.5), leaves), theirs, inputs()).faults
    assert (fault.torch, fault.cause) == ("0", "stopped-gradient")


class Gain(torch.nn.Module):
    """A gain of one."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight


def test_gradients_that_do_not_exist_are_said_not_to_be_compared() -> None:
    def loop(p: Any, x: jax.Array) -> jax.Array:
        return jax.lax.while_loop(lambda c: c[0] < 1, lambda c: (c[0] + 1, port(p, c[1])), (0, x))[
            1
        ]

    report = divergence((loop, params()), Original(), inputs())
    assert report.ok
    assert "gradients" not in report.compared
    assert "gradients not compared: the port raised" in str(report)
    assert_port((loop, params()), Original(), inputs())
    with pytest.raises(AssertionError, match="gradients not compared"):
        assert_layer((loop, params()), Original(), inputs())


def test_a_transposed_square_kernel_is_named_with_its_leaf() -> None:
    given = params()
    given["head.weight"] = given["head.weight"].T
    (fault,) = divergence((port, given), Original(), inputs()).faults
    assert (fault.torch, fault.cause) == ("head", "transposed-kernel")
    assert "head.weight" in fault.evidence


class NnxPort(nnx.Module):
    def __init__(self, p: Any, epsilon: float):
        rngs = nnx.Rngs(0)
        self.n = nnx.LayerNorm(WIDTH, epsilon=epsilon, rngs=rngs)
        self.a = nnx.Linear(WIDTH, INNER, rngs=rngs)
        self.b = nnx.Linear(INNER, WIDTH, rngs=rngs)
        self.c = nnx.Linear(WIDTH, WIDTH, rngs=rngs)
        self.n.scale[...], self.n.bias[...] = p["norm.weight"], p["norm.bias"]
        for layer, name in ((self.a, "up"), (self.b, "down"), (self.c, "head")):
            layer.kernel[...], layer.bias[...] = p[f"{name}.weight"], p[f"{name}.bias"]

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.c(x + self.b(jax.nn.gelu(self.a(self.n(x)), approximate=False)))


class LinenPort(linen.Module):
    epsilon: float

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = linen.LayerNorm(epsilon=self.epsilon, dtype=jnp.float32, name="norm")(x)
        y = jax.nn.gelu(linen.Dense(INNER, name="up")(y), approximate=False)
        return linen.Dense(WIDTH, name="head")(x + linen.Dense(WIDTH, name="down")(y))


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class PytreePort:
    params: Any
    epsilon: float = dataclasses.field(metadata={"static": True})

    def __call__(self, x: jax.Array) -> jax.Array:
        return port(self.params, x, self.epsilon)


def build(style: str, epsilon: float) -> Any:
    p = params()
    if style == "nnx":
        return NnxPort(p, epsilon)
    if style == "pytree":
        return PytreePort(p, epsilon)
    names = {"up": "kernel", "down": "kernel", "head": "kernel", "norm": "scale"}
    variables = {
        name: {kind: p[f"{name}.weight"], "bias": p[f"{name}.bias"]} for name, kind in names.items()
    }
    return LinenPort(epsilon), {"params": variables}


@pytest.mark.parametrize("style", ["nnx", "linen", "pytree"])
def test_each_style_is_compared_by_value(style: str) -> None:
    assert_port(build(style, 1e-5), Original(), inputs())
    with pytest.raises(AssertionError, match="departs at norm"):
        assert_port(build(style, 1e-3), Original(), inputs())


def test_fresh_weights_are_carried() -> None:
    fresh = jax.tree.map(lambda x: x + 1.0, params())
    report = divergence((port, fresh), Original(), inputs())
    assert report.ok
    assert "weights carried from the original into 8 of 8 leaves" in str(report)
    (fault,) = divergence((partial(port, eps=1e-3), fresh), Original(), inputs()).faults
    assert (fault.torch, fault.cause) == ("norm", "epsilon")


def test_the_command_writes_the_verdict_and_refuses_in_one_line(tmp_path: Path) -> None:
    name = f"{__file__}:"
    words = ["--torch", name + "Original", "--inputs", name + "inputs"]
    file = tmp_path / "verdict.json"
    status = command.main(["--jax", name + "wrong", *words, "--json", str(file)])
    verdict = json.loads(file.read_text())
    assert status == 1
    assert [fault["torch"] for fault in verdict["faults"]] == ["norm"]
    assert command.main(["--jax", name + "right", *words]) == 0
    with pytest.raises(UserError, match="KeyError"):
        command.main(["--jax", name + "failing", *words])


def right() -> Any:
    return port, params()


def wrong() -> Any:
    return partial(port, eps=1e-3), params()


def failing() -> Any:
    return {}["missing"]
