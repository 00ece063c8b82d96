"""Faults of normalisation: epsilon, axis, gain, one that is missing."""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from jaxformer.porting.causes.graph import Call, Edits, Graph, Node, Ref
from jaxformer.porting.causes.sites import (
    Number,
    Site,
    Variant,
    ancestors,
    leaf_of,
    remembered,
    same,
    tensor,
)

EPSILONS = (
    *(0.0, 1e-12, 1e-10, 1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1),
    *(2e-5, 5e-6, 3e-6, 2e-3, 5e-5, 1e-16, 1e-30, 1.1920928955078125e-07),
)
STARTS = (1e-9, 1e-7, 1e-5, 1e-3, 1e-1)
"""Where the search for another epsilon starts."""
NORMS = ("layer_norm", "rms_norm", "group_norm", "batch_norm", "instance_norm", "normalize")
ROOTS = ("sqrt", "rsqrt", "pow", "div", "rdiv", "reciprocal")


def number(call: Call) -> float | None:
    """The Python number among the operands of `a + b`, `a * b`, ..."""
    values = [a for a in (*call.args, *call.kwargs.values()) if isinstance(a, int | float)]
    return float(values[0]) if len(values) == 1 and len(call.refs) == 1 else None


def with_number(call: Call, value: float) -> Node:
    swap = lambda a: value if isinstance(a, int | float) else a  # noqa: E731
    return Node(
        call.function, tuple(map(swap, call.args)), {k: swap(v) for k, v in call.kwargs.items()}
    )


def epsilon(graph: Graph) -> Iterable[Site]:
    """Another epsilon, or the same at another place."""
    for call in graph.live:
        if call.name in NORMS:
            variants: dict[str, Variant] = {
                f"epsilon {e:g}": {call.index: graph.changed(call, eps=e)} for e in EPSILONS
            }
            if call.name in ("layer_norm", "rms_norm"):
                variants["epsilon added to the deviation"] = {
                    call.index: graph.changed(call, _written_out(call.name, _outside_root))
                }
                variants["maximum of variance and epsilon"] = {
                    call.index: graph.changed(call, _written_out(call.name, _at_least))
                }
            variants["epsilon"] = Number(
                lambda e, call=call: {call.index: graph.changed(call, eps=e)}, STARTS
            )
            yield Site(call.owner, variants)
        elif call.name in ("add", "clamp", "clamp_min"):
            eps = number(call)
            users = graph.users_of(call)
            if eps is None or not 0 < eps <= 0.1 or not any(u.name in ROOTS for u in users):
                continue
            variants = {f"epsilon {e:g}": {call.index: with_number(call, e)} for e in EPSILONS}
            variants["epsilon"] = Number(
                lambda e, call=call: {call.index: with_number(call, e)}, STARTS
            )
            data = call.data
            for root in users:
                if root.name == "sqrt" and data is not None:
                    variants["epsilon added to the deviation"] = {
                        root.index: Node(lambda v, e=eps: torch.sqrt(v) + e, (data,))
                    }
                if root.name == "rsqrt" and data is not None:
                    variants["epsilon added to the deviation"] = {
                        root.index: Node(lambda v, e=eps: 1 / (torch.sqrt(v) + e), (data,))
                    }
                if root.name == "div" and data is not None and graph[data].name in ("std", "sqrt"):
                    variants["epsilon added to the variance"] = {
                        call.index: Node(lambda s, e=eps: torch.sqrt(s**2 + e), (data,))
                    }
            yield Site(call.owner, variants)


def _written_out(
    name: str,
    divisor: Callable[[Tensor, float], Tensor],
    dims: tuple[int, ...] | None = None,
) -> Callable[..., Tensor]:
    """The norm with another divisor, a function of variance and epsilon, or over other axes."""

    def norm(
        input: Tensor,
        normalized_shape: Iterable[int],
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float | None = None,
    ) -> Tensor:
        eps = torch.finfo(input.dtype).eps if eps is None else eps
        axes = dims or tuple(range(-len(tuple(normalized_shape)), 0))
        centred = input - input.mean(axes, keepdim=True) if name == "layer_norm" else input
        variance = (centred**2).mean(axes, keepdim=True)
        return affine(centred / divisor(variance, eps), weight, bias)

    return norm


def _inside_root(variance: Tensor, eps: float) -> Tensor:
    return torch.sqrt(variance + eps)


def _outside_root(variance: Tensor, eps: float) -> Tensor:
    return torch.sqrt(variance) + eps


def _at_least(variance: Tensor, eps: float) -> Tensor:
    return torch.sqrt(torch.clamp(variance, min=eps))


def affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


PARTS = {
    *("mul", "div", "add", "sub", "pow", "square", "mean", "var", "std", "sum", "sqrt", "rsqrt"),
    *("norm", "vector_norm", "clamp", "reciprocal", "to", "float", "var_mean", "getitem", "double"),
}
"""What norms are written out with."""


class Norm(NamedTuple):
    """The value `x` is normalised; `call` ends it, gain and bias included where known."""

    x: Ref
    call: Call


@remembered
def norms(graph: Graph) -> list[Norm]:
    """Every norm: of one call, of a module called a norm, or of calls that together make one."""
    found: dict[int, Norm] = {}
    covered: set[int] = set()
    for block in graph.blocks:
        if "norm" in type(block.module).__name__.lower() and block.input and block.output:
            call = graph[block.output]
            x, y = tensor(graph, block.input), tensor(graph, block.output)
            if x is not None and y is not None and x.shape == y.shape and block.output.item is None:
                found[call.index] = Norm(block.input, call)
                covered |= set(range(block.start, block.end))
    for call in graph.live:
        if call.index in covered:
            continue
        if call.name in NORMS:
            found[call.index] = Norm(call.kwargs["input"], call)
        elif call.name in ("mul", "div"):
            y = tensor(graph, call.ref)
            for ref in ancestors(graph, call, 7, PARTS):
                x = tensor(graph, ref)
                if x is not None and y is not None and x.shape == y.shape and _normal(x, y):
                    call, ref = _with_affine(graph, call), ref
                    found[call.index] = Norm(ref, call)
                    break
    return [norm for norm in found.values() if norm.call.index in graph.live_indices]


def _normal(x: Tensor, y: Tensor) -> bool:
    """Whether y is x brought to deviation, root mean square or length 1 along some axis."""
    if x.dim() == 0:
        return False
    for dim in range(x.dim()):
        if x.size(dim) < 2:
            continue
        centred = x - x.mean(dim, keepdim=True)
        for z in (centred, x):
            size = torch.sqrt((z**2).mean(dim, keepdim=True))
            for scale in (1.0, x.size(dim) ** -0.5, ((x.size(dim) - 1) / x.size(dim)) ** 0.5):
                if same(z / size * scale, y, 1e-3):
                    return True
    return False


def _with_affine(graph: Graph, call: Call) -> Call:
    """The last of the calls that apply a gain and a bias after `call`."""
    while True:
        users = graph.users_of(call)
        if len(users) != 1 or users[0].name not in ("mul", "add", "to", "type_as", "float"):
            return call
        others = [ref for ref in users[0].refs if ref.call != call.index]
        if any(not _gain(graph, ref) for ref in others):
            return call
        if graph.value(users[0].ref).shape != call.value.shape:
            return call
        call = users[0]


def _gain(graph: Graph, ref: Ref) -> bool:
    leaf = leaf_of(graph, ref)
    if leaf is None and graph[ref].name == "add" and graph[ref].data is not None:
        leaf = leaf_of(graph, graph[ref].refs[0])  # 1 + gain
    return leaf is not None and leaf.name == "parameter"


def missing_norm(graph: Graph) -> Iterable[Site]:
    """No norm where PyTorch has one."""
    for norm in norms(graph):
        yield Site(norm.call.owner, {"no norm": {norm.call.index: Node(lambda x: x, (norm.x,))}})


def _with_gain(
    function: Callable[..., Tensor], change: Callable[[Tensor], Tensor], **kwargs: Any
) -> Tensor:
    return function(**{**kwargs, "weight": change(kwargs["weight"])})


def gain(graph: Graph) -> Iterable[Site]:
    """The gain of a norm left out, or 1 + it, or less one."""
    for call in graph.named("layer_norm", "rms_norm", "group_norm", "batch_norm", "instance_norm"):
        weight, bias = call["weight"], call["bias"]
        if weight is None:
            continue

        def changed(change: Callable[[Tensor], Tensor], call: Call = call) -> Edits:
            function = functools.partial(_with_gain, call.function, change)
            return {call.index: Node(function, (), call.kwargs)}

        variants = {
            "no gain": changed(torch.ones_like),
            "1 + gain": changed(lambda w: 1 + w),
            "gain - 1": changed(lambda w: w - 1),
            "gain squared": changed(lambda w: w * w),
            "neither gain nor bias": {call.index: graph.changed(call, weight=None, bias=None)},
            "gain reversed": changed(lambda w: w.flip(0)),
        }
        if call.name == "rms_norm":
            del variants["neither gain nor bias"]
        if bias is not None:
            variants["gain and bias exchanged"] = {
                call.index: graph.changed(call, weight=bias, bias=weight)
            }
        yield Site(call.owner, variants)
    for norm in norms(graph):
        for call in graph.live:
            if call.name == "mul" and norm.x.call < call.index <= norm.call.index:
                for ref in call.refs:
                    if not _gain(graph, ref) or norm.x not in ancestors(graph, call, 9):
                        continue
                    other = next((r for r in call.refs if r != ref), None)
                    if other is None:
                        continue
                    yield Site(
                        call.owner,
                        {
                            "no gain": {call.index: Node(lambda x: x, (other,))},
                            "1 + gain": {call.index: Node(lambda x, w: x * (1 + w), (other, ref))},
                            "gain - 1": {call.index: Node(lambda x, w: x * (w - 1), (other, ref))},
                        },
                    )


def other_axis(graph: Graph) -> Iterable[Site]:
    """Statistics over other axes."""
    for call in graph.named("layer_norm", "rms_norm", "normalize"):
        x = graph.value(call.kwargs["input"])
        variants: dict[str, Edits] = {}
        for dims in _axes(x):
            if call.name == "normalize":
                if len(dims) == 1:
                    node = graph.changed(call, dim=dims[0])
                    variants[f"over axis {dims[0]}"] = {call.index: node}
                continue
            node = graph.changed(call, _written_out(call.name, _inside_root, dims))
            variants[f"over axes {', '.join(map(str, dims))}"] = {call.index: node}
        yield Site(call.owner, variants)
    for call in graph.named("_weight_norm"):
        v, g = call.refs[:2]
        variants = {}
        for n in range(1, graph.value(v).dim() + 1):
            for dims in itertools.combinations(range(graph.value(v).dim()), n):
                node = Node(lambda v, g, dims=dims: g * v / v.norm(dim=dims, keepdim=True), (v, g))
                variants[f"weights over axes {', '.join(map(str, dims))}"] = {call.index: node}
        yield Site(call.owner, variants)
    for call in graph.named("group_norm", "batch_norm", "instance_norm"):
        x = graph.value(call.kwargs["input"])
        variants = {}
        for dims in _axes(x):
            node = graph.changed(call, _channels_over(dims))
            variants[f"over axes {', '.join(map(str, dims))}"] = {call.index: node}
        yield Site(call.owner, variants)
    for norm in norms(graph):
        inner = [
            call
            for call in graph.live
            if (
                call.name in ("mean", "var", "std", "sum", "norm", "vector_norm", "var_mean")
                and norm.x.call < call.index < norm.call.index
                and norm.x in ancestors(graph, call, 4)
                and call["dim"] is not None
            )
            or (call.name in ("var", "std") and norm.x.call < call.index < norm.call.index)
        ]
        if not inner:
            continue
        x = graph.value(norm.x)
        variants = {}
        for dims in _axes(x):
            edits = {}
            for call in inner:
                edits[call.index] = _along(call, dims)
            variants[f"over axes {', '.join(map(str, dims))}"] = edits
        yield Site(norm.call.owner, variants)


def _along(call: Call, dims: tuple[int, ...]) -> Node:
    """`call` reduced along `dims`, which stay as axes of length 1."""

    def reduce(*args: object, **kwargs: object) -> Tensor:
        x = kwargs.pop("input", None)
        if x is None:
            x, args = args[0], ()
        kwargs.pop("dim", None)
        kwargs.pop("keepdim", None)
        result: Tensor = (
            call.function(x, dim=dims, keepdim=True, **kwargs)
            if call.name in ("var", "std", "norm")
            else call.function(input=x, dim=dims, keepdim=True, **kwargs)
        )
        return result

    return Node(reduce, call.args, call.kwargs)


def _axes(x: Tensor) -> Iterator[tuple[int, ...]]:
    for n in range(1, x.dim() + 1):
        yield from itertools.combinations(range(x.dim()), n)


def per_channel(weight: Tensor | None, x: Tensor) -> Tensor | None:
    return None if weight is None else weight.view(-1, *[1] * (x.dim() - 2))


def _channels_over(dims: tuple[int, ...]) -> Callable[..., Tensor]:
    """A norm with a gain per channel (axis 1) and its statistics over `dims`."""

    def norm(
        input: Tensor,
        *args: object,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
        **_: object,
    ) -> Tensor:
        centred = input - input.mean(dims, keepdim=True)
        normal = centred * torch.rsqrt((centred**2).mean(dims, keepdim=True) + eps)
        return affine(normal, per_channel(weight, input), per_channel(bias, input))

    return norm
