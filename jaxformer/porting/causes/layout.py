"""Faults of layout: heads, flattening, tokens."""

import itertools
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from jaxformer.porting.causes.graph import Edits, Graph, Node, Ref
from jaxformer.porting.causes.sites import (
    LAYOUT,
    Site,
    attentions,
    descends,
    tensor,
)

MOST_AXES = 6


def _permuted(x: Tensor, order: Sequence[int], shape: Sequence[int]) -> Tensor:
    """The axes of x exchanged before it takes `shape`."""
    return x.permute(tuple(order)).reshape(tuple(shape))


def _unpermuted(x: Tensor, order: Sequence[int], shape: Sequence[int]) -> Tensor:
    """x takes `shape` with its axes in another order, which are then put in place."""
    inverse = [order.index(i) for i in range(len(order))]
    return x.reshape([shape[i] for i in order]).permute(inverse)


def _reshapes(graph: Graph) -> Iterator[tuple[str, str, dict[str, Edits]]]:
    """(owner, kind, variants) of every call that merges or splits axes.

    The kind is "merge" or "split" of the last axis, or "tokens" where that stays or the channels
    (axis 1) do.
    """
    for call in graph.live:
        if call.name not in ("view", "reshape", "flatten", "unflatten", "contiguous"):
            continue
        data = call.data
        if data is None or not isinstance(graph.value(data), Tensor):
            continue
        x, y = graph.value(data), call.value
        if not isinstance(y, Tensor) or x.numel() != y.numel():
            continue
        shape = tuple(y.shape)
        variants: dict[str, Edits] = {}
        if x.dim() <= MOST_AXES and x.dim() > 1:
            for order in itertools.permutations(range(x.dim())):
                if list(order) != sorted(order):
                    node = Node(lambda v, o=order, s=shape: _permuted(v, o, s), (data,))
                    text = " ".join(map(str, order))
                    variants[f"axes {text} merged"] = {call.index: node}
        if y.dim() <= MOST_AXES and y.dim() > x.dim():
            for order in itertools.permutations(range(y.dim())):
                if list(order) != sorted(order):
                    node = Node(lambda v, o=list(order), s=shape: _unpermuted(v, o, s), (data,))
                    text = " ".join(map(str, order))
                    variants[f"split into axes {text}"] = {call.index: node}
        if x.shape[-1:] == y.shape[-1:] or (x.dim() > 3 and x.shape[:2] == y.shape[:2]):
            kind = "tokens"
        else:
            kind = "split" if y.dim() > x.dim() else "merge"
        yield call.owner, kind, variants


def head_order(graph: Graph) -> Iterable[Site]:
    """Heads split or merged with their axes in another order."""
    if attentions(graph):
        for owner, _, variants in _reshapes(graph):
            yield Site(owner, variants)


def flatten_order(graph: Graph) -> Iterable[Site]:
    """Axes flattened in another order, such as height, width, channels."""
    if not attentions(graph):
        for owner, kind, variants in _reshapes(graph):
            if kind != "tokens":
                yield Site(owner, variants)
    for call in graph.named("linear"):
        weight = graph.value(call.kwargs["weight"])
        for a, b in factors(weight.size(1)):
            order = torch.arange(weight.size(1)).view(a, b).T.reshape(-1)
            node = linear_with(graph, call.index, columns=order)
            yield Site(call.owner, {f"input as {a} x {b}, transposed": node})


def token_order(graph: Graph) -> Iterable[Site]:
    """Tokens in another order: transposed, reversed, rolled, joined the other way round."""
    if not attentions(graph):
        for owner, kind, variants in _reshapes(graph):
            if kind == "tokens":
                yield Site(owner, variants)
    for call in graph.live:
        y = call.value
        if not isinstance(y, Tensor) or y.dim() < 2:
            continue
        if call.name == "cat" and isinstance(call.kwargs["tensors"], list | tuple):
            dim = (call["dim"] or 0) % y.dim()
            parts = call.kwargs["tensors"]
            if dim < y.dim() - 1 and ((dim == 1 and y.dim() == 3) or dim == y.dim() - 2):
                node = graph.changed(call, tensors=list(parts[::-1]))
                yield Site(call.owner, {"joined the other way round": {call.index: node}})
        if call.name == "flip":
            node = Node(lambda x: x, (call.refs[0],))
            yield Site(call.owner, {"not reversed": {call.index: node}})
        if call.name in ("roll",):
            shifts = call["shifts"]
            if shifts is not None:
                back = tuple(-s for s in shifts) if isinstance(shifts, list | tuple) else -shifts
                yield Site(
                    call.owner,
                    {
                        "not rolled": {call.index: Node(lambda x: x, (call.refs[0],))},
                        "rolled the other way": {call.index: graph.changed(call, shifts=back)},
                    },
                )
    for block in graph.blocks:
        if block.output is None or block.output.item is not None:
            continue
        y = tensor(graph, block.output)
        if y is None or block.output.call not in graph.live_indices:
            continue
        variants = {}
        for dim in range(1, y.dim()):
            call = graph[block.output]
            variants[f"reversed along axis {dim}"] = {
                call.index: graph.then(call, lambda v, d=dim: v.flip(d))
            }
            for shift in (1, -1):
                variants[f"rolled by {shift} along axis {dim}"] = {
                    call.index: graph.then(call, lambda v, d=dim, s=shift: v.roll(s, d))
                }
            if dim + 1 < y.dim() and y.size(dim) == y.size(dim + 1):
                variants[f"axes {dim} and {dim + 1} exchanged"] = {
                    call.index: graph.then(call, lambda v, d=dim: v.transpose(d, d + 1))
                }
        yield Site(block.name, variants)


def factors(n: int) -> list[tuple[int, int]]:
    return [(a, n // a) for a in range(2, n) if n % a == 0]


def linear_with(
    graph: Graph, index: int, rows: Tensor | None = None, columns: Tensor | None = None
) -> Edits:
    """A linear layer whose outputs or inputs are in another order."""
    call = graph[index]

    def linear(weight: Tensor, bias: Tensor | None = None, **rest: object) -> Tensor:
        if rows is not None:
            weight, bias = weight[rows], None if bias is None else bias[rows]
        if columns is not None:
            weight = weight[:, columns]
        result: Tensor = call.function(weight=weight, bias=bias, **rest)
        return result

    return {index: Node(linear, (), call.kwargs)}


def head_order_of_kernels(graph: Graph) -> Iterable[Site]:
    """Outputs or inputs of a projection by width and head where they are by head and width."""
    if not attentions(graph):
        return
    for call in graph.named("linear"):
        weight = graph.value(call.kwargs["weight"])
        variants: dict[str, Edits] = {}
        for a, b in factors(weight.size(0)):
            order = torch.arange(weight.size(0)).view(a, b).T.reshape(-1)
            variants[f"outputs as {a} x {b}, transposed"] = linear_with(
                graph, call.index, rows=order
            )
            variants[f"heads of {b} reversed"] = linear_with(
                graph, call.index, rows=torch.arange(weight.size(0)).view(a, b).flip(0).reshape(-1)
            )
        for a, b in factors(weight.size(1)):
            order = torch.arange(weight.size(1)).view(a, b).T.reshape(-1)
            variants[f"inputs as {a} x {b}, transposed"] = linear_with(
                graph, call.index, columns=order
            )
            variants[f"input heads of {b} reversed"] = linear_with(
                graph,
                call.index,
                columns=torch.arange(weight.size(1)).view(a, b).flip(0).reshape(-1),
            )
        yield Site(call.owner, variants)


def heads_in_the_last_axis(graph: Graph) -> Iterable[Site]:
    """Width before heads, both where the projections are split and where the heads are merged."""
    for product in {a.product.index: a.product for a in attentions(graph) if a.product}.values():
        inside = [c for c in graph.named("linear") if f"{c.owner}.".startswith(product.owner)]
        before = [call for call in inside if descends(graph, product, call)]
        after = [call for call in inside if descends(graph, call, product)][:1]
        if not before or not after:
            continue
        D = graph.value(after[0].kwargs["weight"]).size(1)
        variants: dict[str, Edits] = {}
        for a, b in factors(D):
            order = torch.arange(D).view(a, b).T.reshape(-1)
            edits = dict(linear_with(graph, after[0].index, columns=order))
            for call in before:
                parts = graph.value(call.kwargs["weight"]).size(0) // D
                rows = [order + i * D for i in range(parts)]
                edits |= linear_with(graph, call.index, rows=torch.cat(rows) if rows else None)
            variants[f"{b} heads in the last axis"] = edits
        yield Site(product.owner, variants)


def fused_by_group(graph: Graph) -> Iterable[Site]:
    """Rows of a fused projection by kind (all queries, keys, values) for by group, or the reverse.

    A group is the queries that share a key and a value: (G, H / G + 2, K) rows, G = H without
    sharing.
    """
    for attention in attentions(graph):
        scores = attention.scores
        K = graph.value(scores.refs[0]).size(-1)
        H = scores.value.size(1) if scores.value.dim() == 4 else 0
        for call in graph.named("linear") if H else ():
            rows = graph.value(call.kwargs["weight"]).size(0)
            G, odd = divmod(rows // K - H, 2)
            if rows % K or odd or G < 1 or H % G or not descends(graph, scores, call):
                continue
            heads = torch.arange(rows).view(-1, K)
            kinds = (heads[:H].view(G, -1, K), heads[H : H + G, None], heads[H + G :, None])
            by_kind = torch.cat(kinds, dim=1).reshape(-1)
            variants = {
                "fused by kind, not by group": linear_with(graph, call.index, rows=by_kind),
                "fused by group, not by kind": linear_with(
                    graph, call.index, rows=torch.argsort(by_kind)
                ),
            }
            yield Site(call.owner, variants)


def last_layout(graph: Graph, ref: Ref) -> bool:
    return graph[ref].name in LAYOUT
