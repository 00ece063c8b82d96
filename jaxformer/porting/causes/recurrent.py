"""Faults of recurrent cells: the order of the gates, where the reset gate acts, ended sequences."""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

from jaxformer.porting.causes.graph import Call, Edits, Graph, Node, Ref
from jaxformer.porting.causes.parts import divided
from jaxformer.porting.causes.sites import Site, attentions, behind_layout


def is_recurrent(graph: Graph) -> bool:
    return not attentions(graph) and len(graph.named("sigmoid")) > 1 and bool(graph.named("tanh"))


def gate_order(graph: Graph) -> Iterable[Site]:
    """The gates of an LSTM or GRU in another order."""
    if not is_recurrent(graph):
        return
    for _, kind, n, variants in divided(graph):
        if n in (3, 4) and kind != "slices":
            yield Site("", variants)
    linears = graph.named("linear")
    by_shape: dict[tuple[int, ...], dict[Ref, list[Call]]] = {}
    for call in linears:
        shape = tuple(graph.value(call.kwargs["weight"]).shape)
        by_shape.setdefault(shape, {}).setdefault(call.kwargs["weight"], []).append(call)
    for weights in by_shape.values():
        keys = list(weights)
        if not 2 <= len(keys) <= 8:
            continue
        for i, a in enumerate(keys):
            for b in keys[i + 1 :]:
                edits: dict[int, Node] = {}
                for own, other in ((a, b), (b, a)):
                    source = weights[other][0]
                    for call in weights[own]:
                        edits[call.index] = graph.changed(
                            call, weight=source["weight"], bias=source["bias"]
                        )
                text = f"{graph[a].label or a.call} and {graph[b].label or b.call} exchanged"
                yield Site("", {text: edits})


def reset_placement(graph: Graph) -> Iterable[Site]:
    """The reset gate applied before the product with the kernel, not after it, or the reverse."""
    gates = {call.index for call in graph.named("sigmoid")}
    for call in graph.named("mul"):
        refs = call.refs
        if len(refs) != 2:
            continue
        for gate, other in (refs, refs[::-1]):
            if gate.call not in gates:
                continue
            found = _through(graph, other)
            if found is not None:
                linear, take = found
                node = Node(
                    lambda r, input, weight, bias=None, take=take: take(
                        F.linear(r * input, weight, bias)
                    ),
                    (gate, linear["input"], linear["weight"], linear["bias"]),
                )
                apart = Node(
                    lambda r, input, weight, bias=None, take=take: (
                        r * take(F.linear(input, weight))
                        + (0 if bias is None else take(bias.expand(len(input), -1)))
                    ),
                    (gate, linear["input"], linear["weight"], linear["bias"]),
                )
                yield Site(
                    "",
                    {
                        "reset before the kernel": {call.index: node},
                        "bias outside the reset gate": {call.index: apart},
                    },
                )
            for user in graph.users_of(call):
                if user.name == "linear" and user.kwargs["input"] == call.ref:
                    after = Node(
                        lambda r, h, weight, bias=None: r * F.linear(h, weight, bias),
                        (gate, other, user["weight"], user["bias"]),
                    )
                    yield Site("", {"reset after the kernel": {user.index: after}})


def _through(graph: Graph, ref: Ref) -> tuple[Call, object] | None:
    """The linear layer behind `ref`, and what takes the part of its output that `ref` is."""
    call = graph[ref]
    if call.name == "linear":
        return call, lambda y: y
    if call.name in ("chunk", "split", "getitem", "unbind", "tensor_split"):
        data = call.data
        if data is not None and graph[behind_layout(graph, data)].name == "linear":
            item = ref.item

            def take(y: Tensor, call: Call = call) -> Tensor:
                swap = {data: y}
                args = tuple(swap.get(a, a) if isinstance(a, Ref) else a for a in call.args)
                kwargs = {
                    k: swap.get(v, v) if isinstance(v, Ref) else v for k, v in call.kwargs.items()
                }
                parts = call.function(*args, **kwargs)
                part: Tensor = parts if item is None else parts[item]
                return part

            return graph[data], take
    return None


def way_back(graph: Graph) -> Iterable[Site]:
    """The outputs of the direction from the end to the start, left in the order of its steps."""
    for call in graph.named("flip"):
        steps = call.data
        if steps is not None and graph[steps].name == "stack":
            turned = {call.index: Node(lambda x: x, (steps,))}
            yield Site("", {"the way back left reversed": turned})


def padded_steps(graph: Graph) -> Iterable[Site]:
    """Steps beyond the end of a sequence that change its state."""
    padded: dict[int, Node] = {}
    for call in graph.named("getitem"):
        data = call.data
        if data is not None and graph[data].name == "_pack_padded_sequence" and data.item == 0:
            source = graph[data].refs[0]
            T, B = call.value.shape[:2]
            first = graph.value(source).shape[:2] == (B, T)  # batch first
            padded[call.index] = Node(
                lambda x, first=first, T=T: (x.transpose(0, 1) if first else x)[:T], (source,)
            )
    for call in graph.named("where"):
        condition = call.kwargs["condition"]
        value = graph.value(condition) if isinstance(condition, Ref) else None
        new = call.kwargs.get("input")
        if value is not None and value.dtype == torch.bool and isinstance(new, Ref):
            edits: Edits = {**padded, call.index: Node(lambda x: x, (new,))}
            yield Site("", {"padding is read on": edits})
