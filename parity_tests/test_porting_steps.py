"""`--steps N` compares the updates of both optimizers, and names the setting that differs."""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import linen, nnx

from jaxformer.cli import divergence as command
from jaxformer.errors import UserError
from jaxformer.porting import Report, assert_port, divergence
from parity_tests.test_porting import Original, build, inputs, params, port

RATE = 1e-2
Make = Callable[[Any], Any]
"""From the parameters of a model to its optimizer."""


def compare(transformation: Any, make: Make, mine: Any = None, steps: int = 3) -> Report:
    model = Original()
    side = (port, params()) if mine is None else mine
    made = make(model.named_parameters())
    made = made if isinstance(made, tuple) else (made,)
    return divergence((side, transformation), (model, *made), inputs(), steps=steps)


def sgd(**settings: Any) -> Make:
    return lambda named: torch.optim.SGD([p for _, p in named], lr=RATE, **settings)


def adam(**settings: Any) -> Make:
    return lambda named: torch.optim.Adam([p for _, p in named], lr=RATE, **settings)


def adamw(**settings: Any) -> Make:
    return lambda named: torch.optim.AdamW([p for _, p in named], lr=RATE, **settings)


def grouped(named: Any) -> Any:
    """Decay of matrices alone."""
    parameters = [p for _, p in named]
    matrices = [p for p in parameters if p.ndim > 1]
    vectors = [p for p in parameters if p.ndim < 2]
    groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=RATE, weight_decay=0.1)


def clipped(named: Any, norm: float = 0.5) -> Any:
    """A hook clips the gradients at a norm less than they have."""
    optimizer = sgd()(named)

    def clip(own: Any, args: Any, kwargs: Any) -> None:
        torch.nn.utils.clip_grad_norm_([p for g in own.param_groups for p in g["params"]], norm)

    optimizer.register_step_pre_hook(clip)
    return optimizer


def warmed(shift: int = 1) -> Make:
    def make(named: Any) -> Any:
        optimizer = sgd()(named)
        rate = lambda step: (step + shift) / 10  # noqa: E731
        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, rate)

    return make


def warm(step: Any) -> Any:
    return RATE * (step + 1) / 10


def of_matrices(tree: Any) -> Any:
    return jax.tree.map(lambda x: x.ndim > 1, tree)


def uncorrected() -> optax.GradientTransformation:
    """Adam without the correction of its biases."""
    adam = optax.scale_by_adam()

    def update(g: Any, state: Any, params: Any = None) -> Any:
        _, state = adam.update(g, state, params)
        return jax.tree.map(
            lambda m, v: -RATE * m / (jnp.sqrt(v) + 1e-8), state.mu, state.nu
        ), state

    return optax.GradientTransformation(adam.init, update)


@pytest.mark.parametrize(
    ("transformation", "make"),
    [
        (optax.sgd(RATE), sgd()),
        (optax.sgd(RATE, 0.9, nesterov=True), sgd(momentum=0.9, nesterov=True)),
        (optax.adam(RATE, 0.8, 0.95), adam(betas=(0.8, 0.95))),
        (optax.adamw(RATE, weight_decay=0.1, mask=of_matrices), grouped),
        (optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(RATE)), clipped),
        (optax.sgd(warm), warmed()),
    ],
    ids=["sgd", "nesterov", "adam", "adamw", "clipping", "schedule"],
)
def test_equal_optimizers_agree(transformation: Any, make: Make) -> None:
    report = compare(transformation, make)
    assert report.ok, str(report)
    assert report.compared["steps"] == 3
    assert report.compared["updates"] == report.compared["all_updates"] == 8


@pytest.mark.parametrize(
    ("transformation", "make", "step", "word", "evidence"),
    [
        (optax.adamw(RATE), adamw(), 1, "weight-decay", "decay 0.0001"),
        (optax.adam(RATE), adamw(), 1, "weight-decay", "decay 0"),
        (optax.adamw(RATE, weight_decay=0.1), grouped, 1, "weight-decay", "every parameter"),
        (
            optax.adamw(RATE, weight_decay=0.1, mask=of_matrices),
            adamw(weight_decay=0.1), 1, "weight-decay", "matrices alone",
        ),
        (optax.adamw(RATE), adam(weight_decay=1e-4), 1, "weight-decay", "of the parameters"),
        (optax.adam(RATE, eps=1e-5), adam(), 1, "epsilon", "epsilon 1e-05"),
        (optax.adam(RATE, b2=0.95), adam(), 2, "beta", "(0.9, 0.95)"),
        (uncorrected(), adam(), 1, "bias-correction", "without"),
        (optax.sgd(2 * RATE), sgd(), 1, "learning-rate", "2 times"),
        (optax.sgd(lambda step: warm(step + 1)), warmed(), 1, "schedule", "one step ahead"),
        (optax.sgd(warm), warmed(2), 1, "schedule", "times 0.5, 0.6667, 0.75"),
        (optax.sgd(RATE, 0.9), sgd(), 2, "momentum", "momentum 0.9"),
        (optax.sgd(RATE), clipped, 1, "clipping", "without the hooks"),
        (
            optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(RATE)),
            sgd(), 1, "clipping", "norm 0.5",
        ),
        (optax.adam(-RATE), adam(), 1, "maximize", "maximize"),
        (optax.sgd(lambda step: 3.0 * warm(step)), clipped, 1, "schedule", "times"),
    ],
)  # fmt: skip
def test_the_setting_that_differs_is_named(
    transformation: Any, make: Make, step: int, word: str, evidence: str
) -> None:
    (fault,) = compare(transformation, make).faults
    assert (fault.quantity, fault.cause) == ("update", word), fault.evidence
    assert fault.evidence.startswith(f"step {step} updates ")
    assert evidence in fault.evidence


def test_the_first_parameter_is_named_without_a_known_cause() -> None:
    """Biases alone take larger steps."""
    labels = {name: "large" if name.endswith("bias") else "small" for name in params()}
    transformation = optax.multi_transform(
        {"large": optax.sgd(3 * RATE), "small": optax.sgd(RATE)}, labels
    )
    (fault,) = compare(transformation, sgd()).faults
    assert (fault.torch, fault.jax, fault.cause) == ("norm", "norm.bias", None)
    assert "norm.bias and 3 more of 8" in fault.evidence


@pytest.mark.parametrize("style", ["nnx", "linen", "pytree"])
def test_each_style_has_its_own_tree_of_parameters(style: str) -> None:
    mine = build(style, 1e-5)
    masked = optax.adamw(RATE, weight_decay=0.1, mask=of_matrices)
    assert compare(masked, grouped, mine).ok
    assert compare(optax.adamw(RATE, weight_decay=0.1), grouped, mine).faults


class LinenNorm(linen.Module):
    @linen.compact
    def __call__(self, x: Any) -> Any:
        return linen.BatchNorm(use_running_average=True, epsilon=1e-5, name="n")(x)


@pytest.mark.parametrize("style", ["nnx", "linen"])
def test_running_statistics_are_no_parameters(style: str) -> None:
    """Their gradients are not counted where gradients are clipped."""
    theirs = torch.nn.BatchNorm1d(6).eval()
    mine: Any = LinenNorm(), LinenNorm().init(jax.random.key(0), jnp.zeros((2, 6)))
    if style == "nnx":
        mine = nnx.BatchNorm(6, use_running_average=True, epsilon=1e-5, rngs=nnx.Rngs(0))
    transformation = optax.chain(optax.clip_by_global_norm(0.1), optax.sgd(RATE))
    optimizer = clipped(theirs.named_parameters(), 0.1)
    x = np.random.default_rng(0).standard_normal((5, 6))
    assert_port((mine, transformation), (theirs, optimizer), (x,), steps=2)


def test_steps_start_from_carried_weights() -> None:
    fresh = port, jax.tree.map(lambda x: x + 1.0, params())
    report = compare(optax.adam(RATE), adam(), fresh)
    assert report.ok, str(report)
    assert report.compared["updates"] == 8
    assert report.carried
    (fault,) = compare(optax.adam(RATE, eps=1e-5), adam(), fresh).faults
    assert fault.cause == "epsilon"


def test_integers_among_the_parameters_are_left_out() -> None:
    mine = (lambda p, x: port(p, x), {**params(), "ids": np.arange(3)})
    assert compare(optax.sgd(RATE), sgd(), mine).ok


def test_equal_parameters_are_told_apart_by_their_gradients() -> None:
    """All gains are one and all biases zero, and the sides list them in other orders."""
    model = torch.nn.Sequential(*(torch.nn.LayerNorm(6) for _ in range(3)), torch.nn.Linear(6, 6))
    names = ["a", "c", "b"]
    p: Any = {name: {"scale": np.ones(6), "bias": np.zeros(6)} for name in names}
    p["d"] = {k: v.detach().numpy().T for k, v in model[3].named_parameters()}

    def layers(p: Any, x: Any) -> Any:
        for name in names:
            x = x - x.mean(-1, keepdims=True)
            x = x / jnp.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)
            x = x * p[name]["scale"] + p[name]["bias"]
        return x @ p["d"]["weight"] + p["d"]["bias"]

    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9)
    assert divergence(((layers, p), optax.sgd(RATE, 0.9)), (model, optimizer), inputs(), steps=3).ok


def test_neither_side_is_changed() -> None:
    model = Original()
    optimizer = torch.optim.Adam(model.parameters())
    before = [p.detach().clone() for p in model.parameters()]
    mine = (build("nnx", 1e-5), optax.adam(RATE))
    leaves = jax.tree.map(np.array, nnx.to_pure_dict(nnx.state(mine[0])))
    divergence(mine, (model, optimizer), inputs(), steps=2)
    assert not optimizer.state
    for p, old in zip(model.parameters(), before, strict=True):
        assert torch.equal(p, old)
        assert p.grad is None
        assert p.dtype == torch.float32
    after = nnx.to_pure_dict(nnx.state(mine[0]))
    jax.tree.map(np.testing.assert_array_equal, leaves, after)


def test_steps_are_not_compared_where_values_differ() -> None:
    mine = (lambda p, x: port(p, x, eps=1e-3), params())
    report = compare(optax.adam(RATE), adam(), mine)
    assert [fault.cause for fault in report.faults] == ["epsilon"]
    assert "steps not compared" in str(report)
    assert "steps" not in report.compared


class Fused(torch.nn.Module):
    """Two projections of which the port has one kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = (torch.nn.Linear(6, 6, bias=False) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(torch.tanh(self.a(x)) * self.b(x))


def test_clipping_counts_parameters_that_the_port_has_fused() -> None:
    def fused(p: Any, x: Any) -> Any:
        a, b = jnp.split(x @ p["ab"], 2, axis=-1)
        return (jnp.tanh(a) * b) @ p["out"]

    model = Fused()
    kernels = {name.split(".")[0]: w.detach().numpy().T for name, w in model.named_parameters()}
    p = {"ab": np.concatenate([kernels["a"], kernels["b"]], 1), "out": kernels["out"]}
    transformation = optax.chain(optax.clip_by_global_norm(0.1), optax.sgd(RATE))
    optimizer = clipped(model.named_parameters(), 0.1)
    report = divergence(((fused, p), transformation), (model, optimizer), inputs(), steps=2)
    assert report.ok, str(report)
    assert (report.compared["updates"], report.compared["all_updates"]) == (1, 3)


def no_optimizer() -> Any:
    return port, params()


def right_and_adam() -> Any:
    return (port, params()), optax.adam(RATE)


def original_and_adam() -> Any:
    model = Original()
    return model, torch.optim.Adam(model.parameters(), lr=RATE)


def test_the_command_takes_steps_and_refuses_what_has_no_optimizer() -> None:
    own = {"jax": "right_and_adam", "torch": "original_and_adam", "inputs": "inputs"}

    def run(steps: str, **others: str) -> int:
        sides = {**own, **others}
        flags = [w for side, name in sides.items() for w in (f"--{side}", f"{__file__}:{name}")]
        return command.main([*flags, "--steps", steps])

    assert run("2") == run("0") == 0
    for steps, others in (("2", {"jax": "no_optimizer"}), ("2", {"torch": "Original"}), ("-1", {})):
        with pytest.raises(UserError, match=re.escape(f"--steps {steps}")):
            run(steps, **others)
