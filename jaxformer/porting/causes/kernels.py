"""Faults of kernels, biases and tables: transposed, flipped, left out."""

import itertools
import re
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from jaxformer.porting.causes.convolutions import CONVOLUTIONS, TRANSPOSED
from jaxformer.porting.causes.graph import Call, Edits, Graph, Node, Ref
from jaxformer.porting.causes.sites import Site, leaf_of, tensor


def _with_weight(call: Call, change: Callable[[Tensor], Tensor]) -> Edits:
    def layer(weight: Tensor, **rest: object) -> Tensor:
        result: Tensor = call.function(weight=change(weight), **rest)
        return result

    return {call.index: Node(layer, (), call.kwargs)}


def _matrices(graph: Graph) -> Iterator[tuple[Call, Ref]]:
    """Products with a matrix of parameters that are not called linear."""
    for call in graph.named("matmul", "addmm", "einsum"):
        for ref in call.refs:
            leaf = leaf_of(graph, ref)
            value = graph.value(ref)
            if leaf is not None and leaf.name == "parameter" and value.dim() == 2:
                yield call, ref


def _with_operand(graph: Graph, call: Call, ref: Ref, change: Callable[[Tensor], Tensor]) -> Edits:
    fresh = graph.fresh()
    return {fresh: Node(change, (ref,)), call.index: graph.rewired(call, ref, Ref(fresh))}


def transposed_kernel(graph: Graph) -> Iterable[Site]:
    """A square kernel that is not transposed."""
    for call in graph.named("linear", *CONVOLUTIONS, *TRANSPOSED):
        weight = graph.value(call.kwargs["weight"])
        if weight.dim() >= 2 and weight.size(0) == weight.size(1):
            yield Site(
                call.owner, {"kernel transposed": _with_weight(call, lambda w: w.transpose(0, 1))}
            )
    for call, ref in _matrices(graph):
        if len({*graph.value(ref).shape}) == 1:
            yield Site(
                call.owner, {"kernel transposed": _with_operand(graph, call, ref, lambda w: w.T)}
            )
    for call in graph.named("bilinear"):
        yield Site(call.owner, {"kernel transposed": {call.index: call_swapped(call)}})


def call_swapped(call: Call) -> Node:
    args = list(call.args)
    args[0], args[1] = args[1], args[0]
    return Node(call.function, tuple(args), call.kwargs)


def kernel_layout(graph: Graph) -> Iterable[Site]:
    """A kernel reshaped where it should be transposed, flipped, its height for its width."""
    for call in graph.named("linear"):
        weight = graph.value(call.kwargs["weight"])
        yield Site(
            call.owner,
            {
                "kernel reshaped, not transposed": _with_weight(
                    call, lambda w: w.T.contiguous().reshape(w.shape)
                ),
                "kernel reshaped the other way": _with_weight(
                    call, lambda w: w.reshape(w.shape[::-1]).T
                ),
                "rows of the kernel reversed": _with_weight(call, lambda w: w.flip(0)),
                "columns of the kernel reversed": _with_weight(call, lambda w: w.flip(1)),
            },
        )
        del weight
    for call, ref in _matrices(graph):
        yield Site(
            call.owner,
            {
                "kernel reshaped, not transposed": _with_operand(
                    graph, call, ref, lambda w: w.T.contiguous().reshape(w.shape)
                ),
                "kernel reshaped the other way": _with_operand(
                    graph, call, ref, lambda w: w.reshape(w.shape[::-1]).T
                ),
            },
        )
    for call in graph.named(*CONVOLUTIONS, *TRANSPOSED):
        weight = graph.value(call.kwargs["weight"])
        n = weight.dim()
        axes = list(range(2, n))
        variants: dict[str, Edits] = {}
        for count in range(1, len(axes) + 1):
            for flipped in itertools.combinations(axes, count):
                variants[f"kernel flipped along {' '.join(map(str, flipped))}"] = _with_weight(
                    call, lambda w, f=flipped: w.flip(f)
                )
        shape = tuple(weight.shape)
        for order in itertools.permutations(range(n)):
            if list(order) == sorted(order):
                continue
            text = " ".join(map(str, order))
            if tuple(shape[i] for i in order) == shape:
                variants[f"kernel's axes {text}"] = _with_weight(
                    call, lambda w, o=order: w.permute(o)
                )
            variants[f"kernel stored as axes {text}, reshaped"] = _with_weight(
                call, lambda w, o=order: w.permute(o).reshape(w.shape)
            )
            variants[f"kernel read as axes {text}"] = _with_weight(
                call,
                lambda w, o=order: w.reshape([w.shape[i] for i in o]).permute(
                    [o.index(i) for i in range(len(o))]
                ),
            )
        yield Site(call.owner, variants)


def missing_bias(graph: Graph) -> Iterable[Site]:
    """A bias that is not added."""
    for call in graph.live:
        bias = call["bias"]
        if isinstance(bias, Ref):
            variants: dict[str, Edits] = {"no bias": {call.index: graph.changed(call, bias=None)}}
            for n in (3, 4):
                size = graph.value(bias).size(0)
                if size % n:
                    continue
                for part in range(n):
                    variants[f"no bias in part {part + 1} of {n}"] = {
                        call.index: _without_part(call, n, part)
                    }
            leaf = leaf_of(graph, bias)
            kind = re.search(r"bias_(ih|hh)_l", leaf.label) if leaf is not None else None
            if kind is not None:  # of all layers and directions together
                variants[f"no {kind[0]}"] = variants["no bias"]
            yield Site(call.owner if leaf is None else leaf.label or call.owner, variants)
        elif call.name in ("add", "sub") and len(call.refs) == 2:
            for ref, other in (call.refs, call.refs[::-1]):
                leaf = leaf_of(graph, ref)
                if leaf is not None and leaf.name == "parameter" and leaf.value.dim() <= 1:
                    yield Site(call.owner, {"no bias": {call.index: Node(lambda x: x, (other,))}})
        elif call.name == "addmm":
            node = Node(lambda mat1, mat2: mat1 @ mat2, (call["mat1"], call["mat2"]))
            yield Site(call.owner, {"no bias": {call.index: node}})


def _without_part(call: Call, n: int, part: int) -> Node:
    def layer(bias: Tensor, **rest: object) -> Tensor:
        kept = bias.clone()
        kept.view(n, -1)[part] = 0
        result: Tensor = call.function(bias=kept, **rest)
        return result

    return Node(layer, (), call.kwargs)


def doubled_bias(graph: Graph) -> Iterable[Site]:
    """A bias that is added twice."""
    for call in graph.live:
        bias = call["bias"]
        if isinstance(bias, Ref):
            node = Node(
                lambda bias, call=call, **k: call.function(bias=2 * bias, **k), (), call.kwargs
            )
            yield Site(call.owner, {"bias added twice": {call.index: node}})


def untied_head(graph: Graph) -> Iterable[Site]:
    """Another table of the same shape as the weight of a head or an embedding."""
    tables = [c for c in graph.calls if c.name == "parameter" and c.value.dim() == 2]
    for call in graph.named("linear", "embedding"):
        weight = call.kwargs["weight"]
        leaf = leaf_of(graph, weight)
        if leaf is None:
            continue
        variants: dict[str, Edits] = {}
        for table in tables:
            if table.index != leaf.index and table.value.shape == graph.value(weight).shape:
                if call.name == "linear" and not _is_embedding(graph, table):
                    continue
                variants[f"the weight of {table.label}"] = {
                    call.index: graph.changed(call, weight=table.ref)
                }
        yield Site(call.owner, variants)


def _is_embedding(graph: Graph, table: Call) -> bool:
    return any(u.name == "embedding" for u in graph.users_of(table))


def other_weight(graph: Graph) -> Iterable[Site]:
    """The weights of another layer of the same shapes."""
    linears = graph.named("linear", *CONVOLUTIONS, "layer_norm")
    for call in linears[:24]:
        for other in linears[:24]:
            if other is call or other.name != call.name or other["weight"] == call["weight"]:
                continue
            a, b = graph.value(call["weight"]), graph.value(other["weight"])
            if a is None or b is None or a.shape != b.shape:
                continue
            yield Site(
                call.owner,
                {
                    f"the weights of {other.owner or other.index}": {
                        call.index: graph.changed(call, weight=other["weight"], bias=other["bias"])
                    }
                },
            )


def padding_row(graph: Graph) -> Iterable[Site]:
    """The embedding of the padding token zero, or not."""
    for call in graph.named("embedding"):
        for token in {call["padding_idx"], 0, 1}:
            if isinstance(token, int) and token >= 0:
                node = Node(
                    lambda input, call=call, t=token, **k: (
                        call.function(input=input, **k) * (input != t).unsqueeze(-1)
                    ),
                    (),
                    call.kwargs,
                )
                yield Site(call.owner, {f"embedding of token {token} is zero": {call.index: node}})


def _cast(value: object, dtype: torch.dtype) -> object:
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.to(dtype)
    return value


def precision(graph: Graph) -> Iterable[Site]:
    """One call in float32, bfloat16 or float16."""
    for call in graph.live:
        if tensor(graph, call.ref) is None or not call.refs or call.name in ("view", "reshape"):
            continue
        variants: dict[str, Edits] = {}
        for dtype in (torch.float32, torch.bfloat16, torch.float16):

            def narrow(
                *args: object, call: Call = call, dtype: torch.dtype = dtype, **k: object
            ) -> Tensor:
                result: Tensor = call.function(
                    *(_cast(a, dtype) for a in args), **{n: _cast(v, dtype) for n, v in k.items()}
                )
                return result.double()

            name = str(dtype).removeprefix("torch.")
            variants[f"{call.name} in {name}"] = {call.index: Node(narrow, call.args, call.kwargs)}
            variants[f"result of {call.name} rounded to {name}"] = {
                call.index: graph.then(call, lambda v, d=dtype: v.to(d).double())
            }
        yield Site(call.owner, variants)
