"""Faults in the order of the parts of a tensor: queries, keys and values, gates, splits."""

import itertools
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from jaxformer.porting.causes.activations import activations
from jaxformer.porting.causes.graph import Edits, Graph, Node, Ref
from jaxformer.porting.causes.layout import factors, linear_with
from jaxformer.porting.causes.sites import (
    Site,
    attentions,
    behind_layout,
    descends,
)


def divided(graph: Graph) -> Iterator[tuple[str, str, int, dict[str, Edits]]]:
    """(owner, kind, number of parts, variants) of every division into equal parts."""
    for call in graph.named("chunk", "split", "unbind", "tensor_split"):
        parts = call.value
        if not isinstance(parts, tuple | list) or not 2 <= len(parts) <= 6:
            continue
        n = len(parts)
        kind = "split"
        variants: dict[str, Edits] = {}
        if len({tuple(p.shape) for p in parts}) == 1:
            orders = itertools.permutations(range(n)) if n <= 4 else _exchanges(n)
            for order in orders:
                if list(order) != list(range(n)):
                    node = graph.then(call, lambda v, o=tuple(order): tuple(v[i] for i in o))
                    variants[f"parts in order {' '.join(map(str, order))}"] = {call.index: node}
            if call.name in ("chunk", "split", "tensor_split"):
                dim = call["dim"] if call["dim"] is not None else 0
                source = call.kwargs.get("input")
                if isinstance(source, Ref):
                    node = Node(
                        lambda x, d=dim, n=n: tuple(
                            x.unflatten(d, (-1, n)).unbind(d % x.dim() + 1)
                        ),
                        (source,),
                    )
                    variants["parts interleaved"] = {call.index: node}
        else:
            sizes = [p.size(call["dim"] or 0) for p in parts]
            source = call.kwargs.get("input")
            dim = call["dim"] or 0
            if isinstance(source, Ref):
                for order in itertools.permutations(range(n)) if n <= 4 else ():
                    if list(order) == list(range(n)):
                        continue
                    node = Node(
                        lambda x, o=tuple(order), s=tuple(sizes), d=dim: _in_order(x, o, s, d),
                        (source,),
                    )
                    variants[f"parts in order {' '.join(map(str, order))}"] = {call.index: node}
        yield call.owner, kind, n, variants
    by_source: dict[Ref, list[int]] = {}
    for call in graph.named("getitem"):
        if call.data is not None and isinstance(call.value, Tensor) and len(call.refs) == 1:
            by_source.setdefault(call.data, []).append(call.index)
    for indices in by_source.values():
        parts = [graph[i] for i in indices]
        for same in _same_shape(graph, indices):
            n = len(same)
            if not 2 <= n <= 4:
                continue
            variants = {}
            for order in itertools.permutations(range(n)):
                if list(order) != list(range(n)):
                    variants[f"slices in order {' '.join(map(str, order))}"] = {
                        i: Node(graph[same[j]].function, graph[same[j]].args, graph[same[j]].kwargs)
                        for i, j in zip(same, order, strict=True)
                    }
            if n == 2:
                halves = _interleaved_slices(graph, same)
                if halves:
                    variants["slices interleaved or in halves"] = halves
            whole, part = graph.value(parts[0].refs[0]), graph[same[0]].value
            columns = whole.shape[:-1] == part.shape[:-1]
            yield parts[0].owner, "columns" if columns else "slices", n, variants


def _interleaved_slices(graph: Graph, same: Sequence[int]) -> Edits:
    """x[..., ::2], x[..., 1::2] for x[..., :n], x[..., n:], or the reverse."""
    first = graph[same[0]]
    assert first.data is not None
    x, part = graph.value(first.data), first.value
    if x.shape[:-1] != part.shape[:-1] or x.size(-1) != 2 * part.size(-1):
        return {}
    strided = bool((x[..., ::2] == part).all())
    n = part.size(-1)
    edits: dict[int, Node] = {}
    for k, index in enumerate(same):
        edits[index] = Node(
            (lambda v, k=k: v[..., k * n : (k + 1) * n])
            if strided
            else (lambda v, k=k: v[..., k::2]),
            (first.data,),
        )
    return edits


def _same_shape(graph: Graph, indices: Sequence[int]) -> list[list[int]]:
    groups: dict[tuple[int, ...], list[int]] = {}
    for i in indices:
        groups.setdefault(tuple(graph[i].value.shape), []).append(i)
    return list(groups.values())


def _in_order(
    x: Tensor, order: Sequence[int], sizes: Sequence[int], dim: int
) -> tuple[Tensor, ...]:
    """The parts of x as if they were stored in `order`, each with its own size."""
    stored = torch.split(x, [sizes[i] for i in order], dim)
    return tuple(stored[order.index(i)] for i in range(len(order)))


def _exchanges(n: int) -> Iterator[tuple[int, ...]]:
    for i, j in itertools.combinations(range(n), 2):
        order = list(range(n))
        order[i], order[j] = j, i
        yield tuple(order)
    half = n // 2
    yield (*range(half, n), *range(half))
    yield tuple(reversed(range(n)))
    if n % 2 == 0:
        yield tuple(i // 2 + (i % 2) * half for i in range(n))
        yield tuple((i % half) * 2 + i // half for i in range(n))


def qkv_order(graph: Graph) -> Iterable[Site]:
    """Queries, keys and values exchanged, or a fused projection divided otherwise."""
    if not attentions(graph):
        return
    for owner, kind, n, variants in divided(graph):
        if n == 3 and kind != "slices":
            yield Site(owner, variants)
    linears = graph.named("linear")
    for call in linears:
        weight = graph.value(call.kwargs["weight"])
        F_ = weight.size(0)
        if F_ % 3 == 0:
            found: dict[str, Edits] = {}
            for a, b in [(1, F_ // 3), *factors(F_ // 3)]:
                sizes = (3, a, b)
                for order in itertools.permutations(range(3)):
                    for stored in itertools.permutations(sizes):
                        rows = torch.arange(F_).view(stored).permute(order).reshape(-1)
                        if int(rows[: F_ // 3].max()) >= F_ // 3:  # else within q, k and v
                            text = " x ".join(map(str, stored))
                            found[f"fused as {text}, axes {' '.join(map(str, order))}"] = (
                                linear_with(graph, call.index, rows=rows)
                            )
            yield Site(call.owner, found)
    by_input: dict[Ref, list[int]] = {}
    for call in linears:
        if any(descends(graph, a.scores, call.index) for a in attentions(graph)) or any(
            a.product is not None and descends(graph, a.product, call.index)
            for a in attentions(graph)
        ):
            by_input.setdefault(behind_layout(graph, call.kwargs["input"]), []).append(call.index)
    groups = [group for group in by_input.values() if 2 <= len(group) <= 4]
    together = [i for group in by_input.values() for i in group]
    if len(together) in (2, 3) and together not in groups:
        groups.append(together)
    for group in groups:
        for same in _same_weights(graph, group):
            variants = {}
            for order in itertools.permutations(range(len(same))):
                if list(order) == list(range(len(same))):
                    continue
                variants[f"projections in order {' '.join(map(str, order))}"] = {
                    i: graph.changed(
                        graph[i], weight=graph[same[j]]["weight"], bias=graph[same[j]]["bias"]
                    )
                    for i, j in zip(same, order, strict=True)
                }
            yield Site(graph[same[0]].owner.rpartition(".")[0], variants)
    for attention in attentions(graph):
        if attention.product is None:
            continue
        q, k = attention.scores.refs[0], attention.scores.refs[1]
        v = next(
            (r for r in attention.product.refs if not descends(graph, r, attention.softmax.index)),
            None,
        )
        if v is None:
            continue
        keys = behind_transpose(graph, k)
        edits = {
            "keys for values": {attention.product.index: graph.rewired(attention.product, v, keys)},
        }
        if graph.value(q).shape == graph.value(keys).shape:
            edits["queries for values"] = {
                attention.product.index: graph.rewired(attention.product, v, q)
            }
        scores = attention.scores.value
        if scores.size(-1) == scores.size(-2):
            edits["queries and keys exchanged"] = {
                attention.scores.index: graph.then(attention.scores, lambda s: s.transpose(-1, -2))
            }
        yield Site(attention.scores.owner, edits)


def behind_transpose(graph: Graph, ref: Ref) -> Ref:
    call = graph[ref]
    if call.name in ("transpose", "permute", "mT") and call.data is not None:
        return call.data
    return ref


def _same_weights(graph: Graph, indices: Sequence[int]) -> list[list[int]]:
    groups: dict[tuple[int, ...], list[int]] = {}
    for i in indices:
        shape = (*graph.value(graph[i]["weight"]).shape, int(graph[i]["bias"] is not None))
        groups.setdefault(shape, []).append(i)
    return [group for group in groups.values() if len(group) > 1]


def split_order(graph: Graph) -> Iterable[Site]:
    """The parts of a divided tensor in another order; parts joined in another order."""
    for owner, _, _, variants in divided(graph):
        yield Site(owner, variants)
    for call in graph.named("cat", "stack"):
        parts = call.kwargs["tensors"]
        if not isinstance(parts, list | tuple) or not 2 <= len(parts) <= 4:
            continue
        variants = {}
        for order in itertools.permutations(range(len(parts))):
            if list(order) != list(range(len(parts))):
                node = graph.changed(call, tensors=[parts[i] for i in order])
                variants[f"joined in order {' '.join(map(str, order))}"] = {call.index: node}
        yield Site(call.owner, variants)
    for call in graph.named("linear"):
        n = graph.value(call.kwargs["weight"]).size(0)
        for a in (2, 3, 4, 6):
            if n % a == 0 and n > a:
                for rows in (
                    torch.arange(n).view(a, n // a).T.reshape(-1),
                    torch.arange(n).view(n // a, a).T.reshape(-1),
                ):
                    what = "interleaved" if rows[1] != 1 and rows[1] == n // a else "in blocks"
                    yield Site(
                        call.owner,
                        {f"{a} parts {what}": linear_with(graph, call.index, rows=rows)},
                    )


def gate_swap(graph: Graph) -> Iterable[Site]:
    """The gate and what it gates exchanged: act(b) a for act(a) b; 1 - z for z."""
    found = {a.call.index: a for a in activations(graph)}
    for call in graph.named("mul"):
        refs = [r for r in call.refs if isinstance(graph.value(r), Tensor)]
        if len(refs) != 2 or refs[0] == refs[1]:
            continue
        for gate, other in (refs, refs[::-1]):
            a = found.get(gate.call)
            if a is None or gate.item is not None:
                continue
            if graph.value(other).shape != graph.value(gate).shape:
                continue
            function = graph.between(a.x, a.call)
            node = Node(lambda x, u, f=function: f(u) * x, (a.x, other))
            yield Site(call.owner, {"gate and value exchanged": {call.index: node}})
    for call in graph.named("glu"):
        dim = call.kwargs.get("dim", -1)
        node = Node(
            lambda x, d=dim: torch.sigmoid(x.chunk(2, d)[0]) * x.chunk(2, d)[1], (call.refs[0],)
        )
        yield Site(call.owner, {"gate and value exchanged": {call.index: node}})
    for call in graph.live:
        if call.name == "sigmoid" or (
            found.get(call.index) and found[call.index].name == "sigmoid"
        ):
            users = graph.users_of(call)
            if any(u.name in ("rsub", "sub") for u in users):
                node = graph.then(call, lambda z: 1 - z)
                yield Site(call.owner, {"1 - z for z": {call.index: node}})
