"""Faults of activations: another one, another form of GELU, another slope, none."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from jaxformer.porting.causes.graph import Call, Graph, Node, Ref
from jaxformer.porting.causes.sites import (
    Number,
    Site,
    Variant,
    ancestors,
    remembered,
    same,
    tensor,
)

Function = Callable[[Tensor], Tensor]

GELUS: Mapping[str, Function] = {
    "gelu (erf)": F.gelu,
    "gelu (tanh)": lambda x: F.gelu(x, approximate="tanh"),
    "quick gelu": lambda x: x * torch.sigmoid(1.702 * x),
}

ACTIVATIONS: Mapping[str, Function] = {
    **GELUS,
    "relu": torch.relu,
    "silu": F.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "leaky relu": F.leaky_relu,
    "elu": F.elu,
    "softplus": F.softplus,
    "mish": F.mish,
    "selu": F.selu,
    "relu6": F.relu6,
    "hard swish": F.hardswish,
    "hard sigmoid": F.hardsigmoid,
    "hard tanh": F.hardtanh,
    "softsign": F.softsign,
    "squared relu": lambda x: torch.relu(x) ** 2,
    "log sigmoid": F.logsigmoid,
    "exp": torch.exp,
    "sine": torch.sin,
    "clipped linear (x + 0.5)": lambda x: torch.clamp(0.2 * x + 0.5, 0, 1),
}

DIRECT = {
    *("relu", "gelu", "silu", "tanh", "sigmoid", "leaky_relu", "elu", "softplus", "mish", "selu"),
    *("relu6", "hardswish", "hardsigmoid", "hardtanh", "softsign", "logsigmoid", "celu", "prelu"),
    *("rrelu", "threshold", "clamp", "clamp_min"),
}
ELEMENTWISE = {
    *("mul", "add", "sub", "rsub", "div", "rdiv", "pow", "square", "tanh", "sigmoid", "erf", "exp"),
    *("neg", "clamp", "max", "maximum", "relu", "log", "log1p", "abs", "sqrt", "to", "softplus"),
}
"""What activations are written out with."""
SLOPES = (0.001, 0.01, 0.02, 0.05, 0.1, 0.125, 0.2, 0.25, 0.3, 1 / 3, 0.5, 1.0)


class Activation(NamedTuple):
    """The value `x` goes through the activation `name`, which `call` ends."""

    x: Ref
    call: Call
    name: str

    @property
    def where(self) -> str:
        """Its module, and which part of a divided value it is of: steps of a cell are alike."""
        return self.call.owner + ("" if self.x.item is None else f" (part {self.x.item + 1})")


@remembered
def activations(graph: Graph) -> list[Activation]:
    """Every activation: of one call, or of several that together compute a known one."""
    found: list[Activation] = []
    for call in graph.live:
        y = tensor(graph, call.ref)
        if y is None or call.data is None or call.name in ("where", "masked_fill"):
            continue
        if call.name in ("mul", "maximum", "max", "div", "add", "pow", "square"):
            for ref in ancestors(graph, call, 9, ELEMENTWISE):
                x = tensor(graph, ref)
                if x is None or x.shape != y.shape or not _tells(x):
                    continue
                name = _name(x, y)
                if name is not None and (name not in ("exp", "sine")):
                    found = [f for f in found if not _inside(graph, f.call, ref, call)]
                    found.append(Activation(ref, call, name))
                    break
        elif call.name in DIRECT:
            x = tensor(graph, call.data)
            if x is not None and x.shape == y.shape:
                found.append(Activation(call.data, call, _name(x, y) or call.name))
    return found


def _tells(x: Tensor) -> bool:
    """Whether x has numbers of both signs, among which activations differ."""
    return x.numel() > 2 and float(x.min()) < -1e-2 and float(x.max()) > 1e-2


def _name(x: Tensor, y: Tensor) -> str | None:
    few, wanted = x.flatten()[:8], y.flatten()[:8]
    for name, function in ACTIVATIONS.items():
        if same(function(few), wanted, 1e-6) and same(function(x), y, 1e-9):
            return name
    return None


def _inside(graph: Graph, inner: Call, x: Ref, outer: Call) -> bool:
    return x.call < inner.index < outer.index and inner.ref in ancestors(graph, outer, 9)


def _put(found: Activation, function: Function) -> dict[int, Node]:
    return {found.call.index: Node(function, (found.x,))}


def _another(found: Activation, functions: Mapping[str, Function]) -> Site:
    """Any of these functions in the place of the one that is there."""
    variants: dict[str, Variant] = {
        f"{name} for {found.name}": _put(found, function)
        for name, function in functions.items()
        if name != found.name
    }
    return Site(found.where, variants)


def other_gelu(graph: Graph) -> Iterable[Site]:
    """One of GELU's forms for another: by erf, by tanh, x sigmoid(1.702 x)."""
    for found in activations(graph):
        if found.name in GELUS:
            yield _another(found, GELUS)


def other_slope(graph: Graph) -> Iterable[Site]:
    """Another slope of leaky ReLU, another alpha of ELU, another beta of softplus."""
    for found in activations(graph):
        name = found.call.name
        if name in ("leaky_relu", "prelu", "rrelu") or found.name == "leaky relu":
            variants: dict[str, Variant] = {
                f"negative slope {s:.4g}": _put(found, lambda x, s=s: F.leaky_relu(x, s))
                for s in SLOPES
            }
            variants["negative slope"] = Number(
                lambda s, found=found: _put(found, lambda x: F.leaky_relu(x, s)), SLOPES[1:9:3]
            )
            yield Site(found.where, variants)
        elif name in ("elu", "celu") or found.name == "elu":
            yield Site(
                found.where,
                {f"alpha {s:.4g}": _put(found, lambda x, s=s: F.elu(x, s)) for s in SLOPES},
            )
        elif found.name == "quick gelu":
            yield Site(
                found.where,
                {
                    f"sigmoid({s} x)": _put(found, lambda x, s=s: x * torch.sigmoid(s * x))
                    for s in (1.7, 1.6, math.sqrt(8 / math.pi))
                },
            )


def other_activation(graph: Graph) -> Iterable[Site]:
    """Another activation."""
    for found in activations(graph):
        yield _another(found, ACTIVATIONS)


def missing_activation(graph: Graph) -> Iterable[Site]:
    """None where PyTorch has one."""
    for found in activations(graph):
        yield Site(found.where, {f"no {found.name}": _put(found, lambda x: x)})


def added_activation(graph: Graph) -> Iterable[Site]:
    """One where PyTorch has none."""
    taken = {found.call.index for found in activations(graph)}
    sources = {found.x.call for found in activations(graph)}
    for call in graph.named(
        "linear", "addmm", "conv1d", "conv2d", "batch_norm", "layer_norm", "add"
    ):
        if call.index not in taken | sources and tensor(graph, call.ref) is not None:
            yield Site(
                call.owner,
                {
                    f"{name} after {call.name}": {call.index: graph.then(call, ACTIVATIONS[name])}
                    for name in ("relu", "tanh", "gelu (erf)", "gelu (tanh)", "silu", "sigmoid")
                },
            )
