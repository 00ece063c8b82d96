"""The original's weights in ports that have none of them: pairing, layouts, and what is left."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen, nnx
from torch import nn

from jaxformer.cli import divergence as command
from jaxformer.errors import UserError
from jaxformer.porting import divergence
from jaxformer.porting.carry import Carried, carry
from jaxformer.porting.carry.matching import match
from jaxformer.porting.carry.names import likeness, ranks
from jaxformer.porting.carry.weight import Weight
from jaxformer.porting.interpreter import record
from jaxformer.porting.recorder import record_torch
from jaxformer.porting.sides import inputs_of, jax_side, torch_side

D, H, K, N, V = 6, 3, 2, 2, 13


def carried(mine: Any, theirs: nn.Module, inputs: Any) -> Carried:
    port, original, given = jax_side(mine), torch_side(theirs), inputs_of(inputs)
    recording = record_torch(original.model, *given.torch)
    function, arrays = port.bound(*given.jax)
    return carry(record(function, port.leaves, arrays), recording)


def fresh(*shape: int, seed: int = 7) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def numbers(*shape: int) -> np.ndarray:
    return fresh(*shape, seed=1)


class Products(nn.Module):
    """Three square layers of one input, and one of their sum."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.q, self.k, self.v = (nn.Linear(D, D) for _ in range(3))
        self.out = nn.Linear(D, D, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.q(x) + self.k(x).tanh() + self.v(x).sin())


class Fused(nn.Module):
    """The same with one layer for three: by thirds, or by heads."""

    def __init__(self, by_head: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.by_head = by_head
        self.qkv, self.out = nn.Linear(D, 3 * D), nn.Linear(D, D, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.qkv(x)
        if self.by_head:
            q, k, v = (part.flatten(-2) for part in y.unflatten(-1, (H, 3 * K)).chunk(3, dim=-1))
        else:
            q, k, v = y.chunk(3, dim=-1)
        return self.out(q + k.tanh() + v.sin())


def single(p: Any, x: jax.Array) -> jax.Array:
    q, k, v = (x @ p[name][0] + p[name][1] for name in "qkv")
    return (q + jnp.tanh(k) + jnp.sin(v)) @ p["out"]


def fused(p: Any, x: jax.Array, by_head: bool) -> jax.Array:
    y = x @ p["qkv"] + p["bias"]
    if by_head:
        y = y.reshape(*x.shape[:-1], H, 3, K)
        q, k, v = (y[..., i, :].reshape(x.shape) for i in range(3))
    else:
        q, k, v = jnp.split(y, 3, axis=-1)
    return (q + jnp.tanh(k) + jnp.sin(v)) @ p["out"]


def heads(p: Any, x: jax.Array, kernel: str) -> jax.Array:
    q, k, v = (jnp.einsum(f"btd,{kernel}->bthk", x, p[n][0]) + p[n][1] for n in "qkv")
    return jnp.einsum("bthk,hko->bto", q + jnp.tanh(k) + jnp.sin(v), p["out"])


def three(*kernel: int, bias: tuple[int, ...] = (D,)) -> Any:
    return {name: (fresh(*kernel, seed=i), fresh(*bias)) for i, name in enumerate("qkv")}


SQUARE = {**three(D, D), "out": fresh(D, D)}
ONE = {"qkv": fresh(D, 3 * D), "bias": fresh(3 * D), "out": fresh(D, D)}
SPLIT = {**three(D, H, K, bias=(H, K)), "out": fresh(H, K, D)}
FIRST = {**three(H, D, K, bias=(H, K)), "out": fresh(H, K, D)}
PRODUCTS = {
    "transposed": (single, SQUARE, Products()),
    "head-split": (lambda p, x: heads(p, x, "dhk"), SPLIT, Products()),
    "heads first": (lambda p, x: heads(p, x, "hdk"), FIRST, Products()),
    "fused by thirds": (lambda p, x: fused(p, x, False), ONE, Products()),
    "fused by head": (lambda p, x: fused(p, x, True), ONE, Products()),
    "split of thirds": (single, SQUARE, Fused(False)),
    "split of heads": (single, SQUARE, Fused(True)),
    "fused on both sides": (lambda p, x: fused(p, x, False), ONE, Fused(False)),
}


class Conv1D(nn.Module):
    """transformers' layer, whose weight is (in, out)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = (nn.Parameter(torch.tensor(numbers(*s))) for s in ((D, D), (D,)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.addmm(self.bias, x.view(-1, D), self.weight).view(x.shape)


class Experts(nn.Module):
    """Two layers, each with an input of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(D, D, bias=False) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.experts[0](x).tanh() + self.experts[1](x.flip(0)).tanh()


def experts(p: Any, x: jax.Array) -> jax.Array:
    y = jnp.tanh(jnp.einsum("btd,edf->ebtf", x, p["w"]))
    return y[0] + y[1][::-1]


def stacked(p: Any, x: jax.Array) -> jax.Array:
    return jax.lax.scan(lambda x, q: (jnp.tanh(x @ q[0] + q[1]), None), x, (p["w"], p["b"]))[0]


def convolve(kernel: str) -> Callable[..., jax.Array]:
    axes = ("NHWC", kernel, "NHWC")
    return lambda p, x: jax.lax.conv_general_dilated(
        x, p["w"], (1, 1), "VALID", dimension_numbers=axes
    )


def grow(p: Any, x: jax.Array) -> jax.Array:
    axes = ("NHC", "HIO", "NHC")
    return jax.lax.conv_general_dilated(
        x, p["w"], (1,), ((2, 2),), lhs_dilation=(2,), dimension_numbers=axes
    )


def taps(p: Any, x: jax.Array) -> jax.Array:
    return sum(tap * x[:, i : i + 3] for i, tap in enumerate(p["w"]))


def layers(*modules: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for parameter in nn.ModuleList(modules).parameters():
        nn.init.normal_(parameter)
    return modules[0] if len(modules) == 1 else nn.Sequential(*modules)


SIGNAL, IMAGE = numbers(2, 5, D), numbers(2, 4, 4, 3)
OTHERS = {
    "untransposed": (
        lambda p, x: jnp.einsum("btd,od->bto", x, p["w"]),
        {"w": fresh(D, D)},
        layers(nn.Linear(D, D, bias=False)),
        SIGNAL,
    ),
    "Conv1D": (
        lambda p, x: x @ p["w"] + p["b"],
        {"w": fresh(D, D), "b": fresh(D)},
        layers(Conv1D()),
        SIGNAL,
    ),
    "stacked": (
        stacked,
        {"w": fresh(N, D, D), "b": fresh(N, D)},
        layers(nn.Linear(D, D), nn.Tanh(), nn.Linear(D, D), nn.Tanh()),
        SIGNAL,
    ),
    "experts": (experts, {"w": fresh(2, D, D)}, layers(Experts()), SIGNAL),
    "embedding": (
        lambda p, x: p["table"][x],
        {"table": fresh(V, D)},
        layers(nn.Embedding(V, D)),
        np.arange(10).reshape(2, 5) % V,
    ),
    "HWIO": (
        convolve("HWIO"),
        {"w": fresh(2, 2, 3, 3)},
        layers(nn.Conv2d(3, 3, 2, bias=False)),
        {"jax": (IMAGE,), "torch": (IMAGE.transpose(0, 3, 1, 2),)},
    ),
    "OIHW": (
        convolve("OIHW"),
        {"w": fresh(3, 3, 2, 2)},
        layers(nn.Conv2d(3, 3, 2, bias=False)),
        {"jax": (IMAGE,), "torch": (IMAGE.transpose(0, 3, 1, 2),)},
    ),
    "flipped": (
        grow,
        {"w": fresh(3, D, D)},
        layers(nn.ConvTranspose1d(D, D, 3, stride=2, bias=False)),
        {"jax": (SIGNAL,), "torch": (SIGNAL.transpose(0, 2, 1),)},
    ),
    "taps": (
        taps,
        {"w": fresh(3, D)},
        layers(nn.Conv1d(D, D, 3, groups=D, bias=False)),
        {"jax": (SIGNAL,), "torch": (SIGNAL.transpose(0, 2, 1),)},
    ),
    "normalisation": (
        lambda p, x: (x - p["m"]) / jnp.sqrt(p["v"] + 1e-5) * p["g"] + p["b"],
        {name: np.abs(fresh(D, seed=i)) for i, name in enumerate("mvgb")},
        layers(nn.BatchNorm1d(D)).eval(),
        SIGNAL[:, 0],
    ),
}
LAYOUTS = {
    **{name: (*case, SIGNAL) for name, case in PRODUCTS.items()},
    **OTHERS,
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_is_carried_and_inverts(name: str) -> None:
    """A port that computes the original's function with the numbers, of which none is lost."""
    function, leaves, theirs, inputs = LAYOUTS[name]
    inputs = inputs if isinstance(inputs, dict) else (inputs,)
    found = carried((function, leaves), theirs, inputs)
    assert not found.left
    assert not found.unused
    tensors = [*theirs.parameters(), *(b for b in theirs.buffers() if b.is_floating_point())]
    state = np.concatenate([x.detach().numpy().ravel() for x in tensors])
    back = np.full(state.size, np.nan)
    for leaf, positions in found.positions.items():
        assert positions.shape == found.leaves[leaf].shape
        back[positions.ravel()] = found.leaves[leaf].ravel()
    np.testing.assert_array_equal(back, state)
    assert divergence((function, leaves), theirs, inputs, carry=True).ok


class Original(nn.Module):
    """A residual block with a norm behind an embedding."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.tokens = nn.Embedding(V, D)
        self.norm = nn.LayerNorm(D)
        self.fc1, self.fc2 = nn.Linear(D, 11), nn.Linear(11, D)
        self.head = nn.Linear(D, V)
        for parameter in self.parameters():
            nn.init.normal_(parameter)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.tokens(ids)
        return self.head(x + self.fc2(torch.relu(self.fc1(self.norm(x)))))


class NnxPort(nnx.Module):
    def __init__(self, epsilon: float):
        rngs = nnx.Rngs(0)
        self.table = nnx.Embed(V, D, rngs=rngs)
        self.ln = nnx.LayerNorm(D, epsilon=epsilon, rngs=rngs)
        self.up, self.down = nnx.Linear(D, 11, rngs=rngs), nnx.Linear(11, D, rngs=rngs)
        self.logits = nnx.Linear(D, V, rngs=rngs)

    def __call__(self, ids: jax.Array) -> jax.Array:
        x = self.table(ids)
        return self.logits(x + self.down(nnx.relu(self.up(self.ln(x)))))


class LinenPort(linen.Module):
    epsilon: float

    @linen.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        x = linen.Embed(V, D)(ids)
        y = linen.Dense(11)(linen.LayerNorm(epsilon=self.epsilon)(x))
        return linen.Dense(V)(x + linen.Dense(D)(linen.relu(y)))


def function(p: Any, ids: jax.Array, epsilon: float) -> jax.Array:
    x = p["table"][ids]
    y = x - x.mean(-1, keepdims=True)
    y = y * jax.lax.rsqrt((y * y).mean(-1, keepdims=True) + epsilon) * p["g"] + p["b"]
    y = jax.nn.relu(y @ p["w1"] + p["b1"])
    return (x + y @ p["w2"] + p["b2"]) @ p["w3"] + p["b3"]


IDS = (np.random.default_rng(0).integers(0, V, (2, 9)),)


def build(style: str, epsilon: float) -> Any:
    if style == "nnx":
        return NnxPort(epsilon)
    if style == "linen":
        module = LinenPort(epsilon)
        return module, module.init(jax.random.key(0), IDS[0])
    vectors = dict.fromkeys(("g", "b", "b2"), (D,)) | {"b1": (11,), "b3": (V,)}
    shapes = {"table": (V, D), "w1": (D, 11), "w2": (11, D), "w3": (D, V), **vectors}
    params = {name: fresh(*shape) for name, shape in shapes.items()}
    return functools.partial(function, epsilon=epsilon), params


@pytest.mark.parametrize("style", ["nnx", "linen", "function"])
def test_a_port_of_each_style_with_weights_of_its_own(style: str) -> None:
    report = divergence(build(style, 1e-5), Original(), IDS)
    assert report.ok
    assert report.carried is not None
    assert not report.carried["left"]
    assert not report.carried["unused"]
    (fault,) = divergence(build(style, 1e-2), Original(), IDS).faults
    assert (fault.torch, fault.cause) == ("norm", "epsilon")


def test_loaded_weights_stay_unless_carrying_is_asked_for() -> None:
    theirs = nn.Linear(D, D)
    state = {name: x.detach().numpy() for name, x in theirs.named_parameters()}
    mine = lambda p, x: x @ p["weight"] + p["bias"]  # noqa: E731
    (fault,) = divergence((mine, state), theirs, (SIGNAL,)).faults
    assert fault.cause == "transposed-kernel"
    assert divergence((mine, state), theirs, (SIGNAL,), carry=True).ok


def test_a_leaf_without_a_counterpart_is_named_and_stays(tmp_path: Path) -> None:
    def mine(p: Any, x: jax.Array) -> jax.Array:
        return x @ p["w"] + p["b"] + p["table"][: x.shape[1]]

    leaves = {"w": fresh(D, D), "b": np.zeros(D, np.float32), "table": np.zeros((9, D))}
    report = divergence((mine, leaves), nn.Linear(D, D), (SIGNAL,))
    assert report.ok
    assert "not carried: table: no tensor of the original fits" in str(report)
    assert set(report.as_json()["carried"]["left"]) == {"table"}


class Pair(nn.Module):
    """Two vectors that are used alike."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (
            nn.Parameter(torch.tensor(numbers(D)[::s].copy())) for s in (1, -1)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x * self.first) - x * self.second


def test_what_the_code_leaves_open_is_tried() -> None:
    def mine(p: Any, x: jax.Array) -> jax.Array:
        minus = x * p["a"]
        return jnp.tanh(x * p["z"]) - minus

    assert divergence((mine, {"a": fresh(D), "z": fresh(D, seed=2)}), Pair(), (SIGNAL,)).ok


class PostNorm(nn.Module):
    """Two layers, each with a norm behind its residual sum."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc1, self.fc2 = nn.Linear(D, D), nn.Linear(D, D)
        self.norm1, self.norm2 = nn.LayerNorm(D), nn.LayerNorm(D)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm1(x + self.fc1(x))
        return self.norm2(x + self.fc2(x))


def test_a_norm_at_another_place_is_the_same_one_of_two() -> None:
    def norm(p: Any, x: jax.Array) -> jax.Array:
        y = x - x.mean(-1, keepdims=True)
        return y / jnp.sqrt((y * y).mean(-1, keepdims=True) + 1e-5) * p["g"] + p["b"]

    def pre(p: Any, x: jax.Array) -> jax.Array:
        for i in "ab":
            x = x + norm(p[f"norm_{i}"], x) @ p[f"fc_{i}"]["w"] + p[f"fc_{i}"]["b"]
        return x

    vector = {"g": fresh(D), "b": fresh(D)}
    dense = {"w": fresh(D, D), "b": fresh(D)}
    leaves = {"norm_a": vector, "norm_b": vector, "fc_a": dense, "fc_b": dense}
    found = carried((pre, leaves), PostNorm(), (SIGNAL,)).tensors
    assert found["norm_a.g"] == ("norm1.weight",)
    assert found["norm_b.b"] == ("norm2.bias",)
    assert found["fc_a.w"] == ("fc1.weight",)


def test_an_ordinal_says_more_than_the_order() -> None:
    mine = [Weight(f"0.norm_{x}", np.arange(D), "gain", i) for i, x in enumerate("ab")]
    theirs = [Weight(f"0.norm{i}", np.arange(D), "gain", -i) for i in (2, 1)]
    found = match(mine, theirs)[0]
    assert [found[weight].name for weight in mine] == ["0.norm1", "0.norm2"]


def test_names_say_which_of_several_it_is() -> None:
    assert likeness("layer_0.query.kernel", "h.0.attn.q_proj.weight") > 0.5
    assert likeness("layer_0.query.kernel", "h.0.attn.k_proj.weight") == -1
    assert likeness("mlp.w3", "mlp.gate_proj") == -1
    found = ranks(["layers.0.norm_a", "layers.0.norm_b", "head"])
    assert found == {"layers.0.norm_a": (0, 2, (0,)), "layers.0.norm_b": (1, 2, (0,))}


def test_the_command_carries_and_refuses_what_has_no_weights(tmp_path: Path) -> None:
    name = f"{__file__}:"
    words = ["--torch", name + "Original", "--inputs", name + "ids", "--carry"]
    file = tmp_path / "verdict.json"
    assert command.main(["--jax", name + "right", *words, "--json", str(file)]) == 0
    assert len(json.loads(file.read_text())["carried"]["leaves"]) == 9
    with pytest.raises(UserError, match="--carry"):
        command.main(["--jax", name + "empty", *words])


def ids() -> Any:
    return IDS


def right() -> Any:
    return build("function", 1e-5)


def empty() -> Any:
    return lambda ids: jnp.zeros((*ids.shape, V))
