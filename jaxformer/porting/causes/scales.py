"""Faults of scale: embeddings, outputs."""

import math
from collections.abc import Iterable, Iterator

from jaxformer.porting.causes.graph import Call, Graph, Node
from jaxformer.porting.causes.norms import number
from jaxformer.porting.causes.sites import (
    LAYOUT,
    Number,
    Site,
    Variant,
    behind_layout,
    leaf_of,
    tensor,
)


def embedding_scale(graph: Graph) -> Iterable[Site]:
    """An embedding that is not multiplied by sqrt(D), or that is; positions scaled with it."""
    scales = {c.index for c in _after_embeddings(graph)}
    for call in graph.named("embedding"):
        D = graph.value(call.kwargs["weight"]).size(-1)
        variants: dict[str, Variant] = {}
        for factor, text in (
            *((D**0.5, "* sqrt(D)"), (D**-0.5, "/ sqrt(D)"), (float(D), "* D"), (1 / D, "/ D")),
        ):
            variants[f"embedding {text}"] = {
                call.index: graph.then(call, lambda v, f=factor: v * f)
            }
        variants["embedding times"] = Number(
            lambda f, call=call: {call.index: graph.then(call, lambda v: v * f)},
            (0.1, 0.5, 2.0, 10.0),
        )
        yield Site(call.owner, variants)
    for index in scales:
        call = graph[index]
        variants = {"embedding not scaled": {index: Node(lambda x: x, (call.refs[0],))}}
        factor = number(call)
        if factor is None:
            factor = float(graph.value(call.refs[1])) if len(call.refs) == 2 else 1.0
        if call.name == "div":
            factor = 1 / factor
        variants["embedding scaled twice"] = {index: graph.then(call, lambda v, f=factor: v * f)}
        for user in graph.users_of(call):
            if user.name == "add":
                other = [r for r in user.refs if r.call != index]
                if other:
                    variants["positions scaled too"] = {
                        user.index: Node(lambda a, b, f=factor: a + f * b, (call.ref, other[0]))
                    }
        yield Site(call.owner, variants)
    for call in graph.named("add"):
        if len(call.refs) == 2 and any(
            graph[behind_layout(graph, r)].name == "embedding" for r in call.refs
        ):
            D = call.value.size(-1)
            yield Site(
                call.owner,
                {
                    "sum of embeddings * sqrt(D)": {
                        call.index: graph.then(call, lambda v, f=D**0.5: v * f)
                    },
                    "sum of embeddings / sqrt(D)": {
                        call.index: graph.then(call, lambda v, f=D**-0.5: v * f)
                    },
                },
            )


def _after_embeddings(graph: Graph) -> Iterator[Call]:
    """Multiplications by a number of what comes out of an embedding."""
    level = [user for call in graph.named("embedding") for user in graph.users_of(call)]
    for _ in range(5):
        following = []
        for call in level:
            if call.name in ("mul", "div") and is_number_product(graph, call):
                yield call
            if call.name in (*LAYOUT, "add", "layer_norm"):
                following += graph.users_of(call)
        level = following


def is_number_product(graph: Graph, call: Call) -> bool:
    if number(call) is not None:
        return True
    return (
        len(call.refs) == 2
        and any(graph.value(r).numel() == 1 for r in call.refs)
        and (graph.value(call.refs[0]).numel() != 1)
    )


def left_out(graph: Graph) -> Iterable[Site]:
    """A multiplication by a number or by a parameter that is left out."""
    for call, _ in _multiplications(graph):
        yield Site(call.owner, {"not scaled": {call.index: Node(lambda x: x, (call.refs[0],))}})
    for call in graph.named("mul"):
        for x, gain in (call.refs, call.refs[::-1]) if len(call.refs) == 2 else ():
            leaf = leaf_of(graph, gain)
            if leaf is not None and leaf.name == "parameter":
                alone = {call.index: Node(lambda x: x, (x,))}
                yield Site(call.owner, {"not scaled by a parameter": alone})


def _multiplications(graph: Graph) -> Iterator[tuple[Call, float]]:
    """The products with a number, or quotients by one, and the factor."""
    for call in graph.live:
        if call.name not in ("mul", "div") or not is_number_product(graph, call):
            continue
        if tensor(graph, call.ref) is None:
            continue
        factor = number(call)
        if factor is None:
            factor = float(graph.value(call.refs[1]))
        if call.name == "div" and factor:
            factor = 1 / factor
        if factor not in (0.0, 1.0):
            yield call, factor


def output_scale(graph: Graph) -> Iterable[Site]:
    """A multiplication by a number that is done twice or inverted; a sum for a mean."""
    for call, factor in _multiplications(graph):
        yield Site(
            call.owner,
            {
                "scaled twice": {call.index: graph.then(call, lambda v, f=factor: v * f)},
                "scale inverted": {call.index: graph.then(call, lambda v, f=factor: v / f / f)},
                "scale's root": {
                    call.index: graph.then(
                        call, lambda v, f=factor: v / f * math.copysign(abs(f) ** 0.5, f)
                    )
                },
                "scale squared": {call.index: graph.then(call, lambda v, f=factor: v * abs(f))},
            },
        )
    for call in graph.live:
        if call["reduction"] in ("sum", "mean"):
            other = "mean" if call["reduction"] == "sum" else "sum"
            reduced = {call.index: graph.changed(call, reduction=other)}
            variants = {f"{other} of the losses": reduced}
            for user in graph.users_of(call):
                if user.name in ("mul", "div") and is_number_product(graph, user):
                    alone = {**reduced, user.index: Node(lambda x: x, (call.ref,))}
                    variants[f"{other} of the losses, not scaled"] = alone
            yield Site(call.owner, variants)
    for block in graph.blocks:
        if block.output is not None and block.output.item is None:
            call = graph[block.output]
            if call.index in graph.live_indices and tensor(graph, call.ref) is not None:
                scaled = Number(
                    lambda f, call=call: {call.index: graph.then(call, lambda v: v * f)},
                    (0.1, 0.5, 2.0, 10.0),
                )
                yield Site(block.name, {f"output of {block.name or 'the module'} times": scaled})
    for call in graph.named("linear"):
        if call.ref in graph.outputs or any(
            graph[behind_layout(graph, o)].index == call.index for o in graph.outputs
        ):
            width = graph.value(call.kwargs["weight"]).size(1)
            yield Site(
                call.owner,
                {
                    f"input * width^{p}": {
                        call.index: Node(
                            lambda input, call=call, f=width**p, **k: call.function(
                                input=input * f, **k
                            ),
                            (),
                            call.kwargs,
                        )
                    }
                    for p in (-0.5, 0.5, -1, 1)
                },
            )
