"""Faults of attention: scales, softmax, repeated keys and values, position biases."""

import math
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from jaxformer.porting.causes.graph import Call, Edits, Graph, Node, Ref
from jaxformer.porting.causes.masks import mask_use
from jaxformer.porting.causes.norms import number
from jaxformer.porting.causes.sites import (
    LAYOUT,
    Attention,
    Number,
    Site,
    Variant,
    attentions,
    behind_layout,
    is_softmax,
    softmax_input,
    tensor,
)


def _scales(graph: Graph, attention: Attention) -> list[Call]:
    """Multiplications by a number in front of a softmax: of the scores, the queries or the keys."""
    calls = [c for c in attention.chain if c.name in ("mul", "div") and _factor(graph, c)]
    for ref in attention.scores.refs:
        while graph[ref].name in (*LAYOUT, "mul", "div") and graph[ref].refs:
            if graph[ref].name in ("mul", "div") and _factor(graph, graph[ref]):
                calls.append(graph[ref])
            ref = graph[ref].refs[0]
    return calls


def _factor(graph: Graph, call: Call) -> bool:
    if number(call) is not None:
        return True
    return len(call.refs) == 2 and graph.value(call.refs[1]).numel() == 1


def _first(call: Call) -> Node:
    """`call` replaced by its first tensor."""
    return Node(lambda x: x, (call.refs[0],))


def missing_scale(graph: Graph) -> Iterable[Site]:
    """Scores that are not divided by sqrt(K)."""
    for attention in attentions(graph):
        edits: Edits = {call.index: _first(call) for call in _scales(graph, attention)}
        if edits:
            yield Site(attention.scores.owner, {"scores not scaled": edits})


def extra_scale(graph: Graph) -> Iterable[Site]:
    """Scores multiplied by a further factor: by a width, a number of heads, their roots."""
    for attention in attentions(graph):
        shapes = [graph.value(ref).shape for ref in attention.scores.refs]
        widths = {"K": shapes[0][-1], "L": shapes[0][-2]}
        if len(shapes[0]) == 4:
            widths["H"] = shapes[0][1]
            widths["D"] = shapes[0][1] * shapes[0][-1]
        widths |= {"2": 2}
        variants: dict[str, Variant] = {}
        for letter, n in widths.items():
            for power, text in (
                (-0.5, "/ sqrt({})"),
                (0.5, "* sqrt({})"),
                (-1, "/ {}"),
                (1, "* {}"),
            ):
                factor = float(n) ** power
                if factor != 1:
                    what = f"scores {text.format(letter)} besides"
                    call = attention.scores
                    variants[what] = {call.index: graph.then(call, lambda s, f=factor: s * f)}
        variants["scores times"] = Number(
            lambda f, c=attention.scores: {c.index: graph.then(c, lambda s: s * f)},
            (0.05, 0.25, 0.7, 1.4, 4.0, 20.0),
        )
        yield Site(attention.scores.owner, variants)


def softmax_axis(graph: Graph) -> Iterable[Site]:
    """Softmax over another axis."""
    for call in graph.live:
        if call.name == "log_softmax" or is_softmax(graph, call):
            x = call.kwargs["input"] if call.name == "log_softmax" else softmax_input(graph, call)
            value = tensor(graph, x)
            if value is None or x is None:
                continue
            function = torch.log_softmax if call.name == "log_softmax" else torch.softmax
            yield Site(
                call.owner,
                {
                    f"softmax over axis {dim}": {
                        call.index: Node(lambda x, d=dim, f=function: f(x, d), (x,))
                    }
                    for dim in range(value.dim())
                }
                | {
                    f"softmax over axis {dim} of finite scores": {
                        call.index: Node(lambda x, d=dim, f=function: f(x.clamp(min=-1e9), d), (x,))
                    }
                    for dim in range(value.dim())
                    if bool(torch.isinf(value).any())
                },
            )


def kv_repeat(graph: Graph) -> Iterable[Site]:
    """Key-value heads tiled (0 1 0 1) where each should be repeated (0 0 1 1), or the reverse."""
    for call in graph.named("repeat_interleave"):
        n, dim = call["repeats"], call["dim"]
        x = tensor(graph, call.kwargs["input"])
        if x is not None and isinstance(n, int) and dim is not None:
            times = [1] * x.dim()
            times[dim] = n
            node = Node(lambda x, t=tuple(times): x.repeat(t), (call.kwargs["input"],))
            yield Site(call.owner, {"heads tiled": {call.index: node}})
    for call in graph.named("repeat"):
        x, y = tensor(graph, call.data), call.value
        if x is None or x.dim() != y.dim():
            continue
        more = [d for d in range(x.dim()) if x.size(d) != y.size(d)]
        if len(more) == 1:
            d, n = more[0], y.size(more[0]) // x.size(more[0])
            node = Node(lambda x, d=d, n=n: torch.repeat_interleave(x, n, d), (call.data,))
            yield Site(call.owner, {"heads repeated": {call.index: node}})
    for call in graph.named("reshape", "view", "flatten"):
        data = call.data
        if data is None or graph[data].name not in ("expand", "broadcast_to", "repeat"):
            continue
        source = graph[data].data
        x, wide = tensor(graph, source), graph.value(data)
        if x is None or x.dim() != wide.dim():
            continue
        axes = [d for d in range(x.dim()) if x.size(d) == 1 and wide.size(d) > 1]
        for d in axes:
            if d > 0 and wide.size(d - 1) > 1 and call.value.dim() == wide.dim() - 1:
                shape = call.value.shape
                node = Node(lambda w, d=d, s=shape: w.transpose(d, d - 1).reshape(s), (data,))
                yield Site(call.owner, {"heads tiled": {call.index: node}})
            if d + 1 < wide.dim() and call.value.dim() == wide.dim() - 1:
                shape = call.value.shape
                node = Node(lambda w, d=d, s=shape: w.transpose(d, d + 1).reshape(s), (data,))
                yield Site(call.owner, {"heads repeated": {call.index: node}})


def position_bias(graph: Graph) -> Iterable[Site]:
    """A bias of the scores by distance: left out, negated, with axes exchanged, heads reversed."""
    for attention in attentions(graph):
        for call in attention.chain:
            if call.name != "add" or len(call.refs) != 2:
                continue
            shape = call.value.shape
            for scores, bias in (call.refs, call.refs[::-1]):
                b = tensor(graph, bias)
                if b is None or b.dim() < 2 or mask_use(graph, attention, call) is not None:
                    continue
                if graph.value(scores).shape != shape or _is_scores(graph, attention, bias):
                    continue

                def add(
                    change: Callable[[Tensor], Tensor],
                    scores: Ref = scores,
                    bias: Ref = bias,
                    call: Call = call,
                ) -> Edits:
                    return {call.index: Node(lambda x, y: x + change(y), (scores, bias))}

                variants = {
                    "no position bias": add(lambda b: torch.zeros_like(b)),
                    "position bias negated": add(lambda b: -b),
                    "position bias of key and query exchanged": add(lambda b: b.transpose(-1, -2)),
                    "position bias reversed along the keys": add(lambda b: b.flip(-1)),
                    "position bias reversed along the queries": add(lambda b: b.flip(-2)),
                    "position bias one key to the right": add(lambda b: b.roll(1, -1)),
                    "position bias one key to the left": add(lambda b: b.roll(-1, -1)),
                    "position bias of absolute distance": add(
                        lambda b: torch.where(b.tril().bool(), b, b.tril().transpose(-1, -2))
                    ),
                }
                if b.dim() >= 3 and b.size(-3) > 1:
                    variants["heads of the position bias reversed"] = add(lambda b: b.flip(-3))
                    variants["heads of the position bias shifted"] = add(lambda b: b.roll(1, -3))
                    H = b.size(-3)
                    for letter, k in (("one head on", -8 / H), ("one head back", 8 / H)):
                        variants[f"slopes {letter}"] = add(lambda b, k=k: b * 2.0**k)
                for power, text in ((-0.5, "/ sqrt(K)"), (0.5, "* sqrt(K)")):
                    K = graph.value(attention.scores.refs[0]).size(-1)
                    variants[f"position bias {text}"] = add(lambda b, f=K**power: b * f)
                yield Site(call.owner, variants)
    yield from _index_faults(graph)


def _is_scores(graph: Graph, attention: Attention, ref: Ref) -> bool:
    return behind_layout(graph, ref).call == attention.scores.index or ref in [
        call.ref for call in attention.chain
    ]


def _index_faults(graph: Graph) -> Iterator[Site]:
    """The table of relative positions read at other places."""
    for call in graph.named("embedding", "getitem"):
        if call.name == "embedding":
            index, table = call.kwargs["input"], call.kwargs["weight"]
        else:
            refs = call.refs
            if len(refs) != 2 or graph.value(refs[1]).is_floating_point():
                continue
            table, index = refs
        ids = graph.value(index)
        if ids.dtype == torch.bool or ids.dim() < 1 or not ids.numel():
            continue
        if graph[index].name == "input":  # tokens or their types
            continue
        flat = ids.double()
        square = ids.dim() >= 2 and ids.size(-1) == ids.size(-2)
        side = math.isqrt(ids.numel())
        if (not square and side * side != ids.numel()) or len(flat.unique()) < 2:
            continue
        n = graph.value(table).size(0)

        def at(
            change: Callable[[Tensor], Tensor], index: Ref = index, call: Call = call, n: int = n
        ) -> Edits:
            fresh = graph.fresh()
            return {
                fresh: Node(lambda i: change(i).clamp(0, n - 1), (index,)),
                call.index: graph.rewired(call, index, Ref(fresh)),
            }

        def turned(i: Tensor, side: int = side) -> Tensor:
            if i.dim() >= 2 and i.size(-1) == i.size(-2):
                return i.transpose(-1, -2)
            return i.view(side, side).T.reshape(i.shape)

        yield Site(
            call.owner,
            {
                "relative positions of key and query exchanged": at(turned),
                "relative positions reversed": at(lambda i, n=n: n - 1 - i),
                "relative positions one less": at(lambda i: i - 1),
                "relative positions one more": at(lambda i: i + 1),
            },
        )
