"""Faults of where a convolution looks: padding, windows of its output, dilation."""

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from jaxformer.porting.causes.graph import Call, Edits, Graph, Node, Ref
from jaxformer.porting.causes.sites import Site

CONVOLUTIONS = ("conv1d", "conv2d", "conv3d")
TRANSPOSED = ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")


def _spatial(value: Any, n: int) -> list[int]:
    return [int(v) for v in value] if isinstance(value, tuple | list) else [int(value)] * n


def conv_padding(graph: Graph) -> Iterable[Site]:
    """Padding on other sides or of another kind, with the output's shape kept."""
    for call in graph.named(*CONVOLUTIONS):
        weight = graph.value(call.kwargs["weight"])
        x = graph.value(call.kwargs["input"])
        n = weight.dim() - 2
        padding = call["padding"] if call["padding"] is not None else 0
        dilation = _spatial(call["dilation"] or 1, n)
        source, amounts = call.kwargs["input"], None
        if isinstance(padding, str):
            totals = [
                d * (k - 1) if padding == "same" else 0
                for d, k in zip(dilation, weight.shape[2:], strict=True)
            ]
            amounts = [(t // 2, t - t // 2) for t in totals]
        else:
            amounts = [(p, p) for p in _spatial(padding, n)]
        padded = graph[source] if graph[source].name == "pad" else None
        if padded is not None and all(a == (0, 0) for a in amounts):
            source = padded.refs[0]
            before = graph.value(source)
            widths = next((a for a in padded.args if isinstance(a, tuple | list)), None)
            widths = padded.kwargs.get("pad", widths)
            if widths is None or before.dim() != x.dim():
                continue
            widths = [int(w) for w in widths] + [0] * (2 * n - len(widths))
            amounts = [(widths[2 * (n - 1 - i)], widths[2 * (n - 1 - i) + 1]) for i in range(n)]
        yield Site(call.owner, dict(_paddings(graph, call, source, amounts)))
    for call in graph.named("getitem", "narrow"):
        if call.data is not None and graph[call.data].name in CONVOLUTIONS:
            yield Site(call.owner, dict(_windows(graph, call, call.data)))
    for call in graph.named(*TRANSPOSED):
        y = call.value
        n = y.dim() - 2
        padding = _spatial(call["padding"] or 0, n)
        variants: dict[str, Edits] = {}
        for shift in range(-3, 4):
            if shift:
                variants[f"output cut {shift:+d} further"] = {
                    call.index: Node(
                        lambda call=call, s=shift, shape=tuple(y.shape), p=tuple(padding), **k: (
                            _cut(call, s, shape, p, k)
                        ),
                        (),
                        call.kwargs,
                    )
                }
        yield Site(call.owner, variants)


def _windows(graph: Graph, call: Call, whole: Ref) -> Iterator[tuple[str, Edits]]:
    """Other windows of a convolution's output, of which the reference cuts one end off."""
    x, y = graph.value(whole), call.value
    cut = [a - b for a, b in zip(x.shape, y.shape, strict=False)]
    axes = [axis for axis, n in enumerate(cut) if n > 0]
    if x.dim() != y.dim() or len(axes) != 1:
        return
    (axis,) = axes
    starts = {"both ends": cut[axis] // 2, "the front": cut[axis], "the end": 0}
    for end, start in starts.items():
        node = Node(lambda x, s=start: x.narrow(axis, s, y.size(axis)), (whole,))
        yield f"cut at {end}", {call.index: node}


def other_dilation(graph: Graph) -> Iterable[Site]:
    """Another distance between the taps of a kernel, with padding and output in proportion."""
    for call in graph.named(*CONVOLUTIONS):
        n = graph.value(call.kwargs["weight"]).dim() - 2
        taps = graph.value(call.kwargs["weight"]).shape[2:]
        own, padding = _spatial(call["dilation"] or 1, n), call["padding"] or 0
        if isinstance(padding, str):
            continue
        variants: dict[str, Edits] = {}
        for other in (1, 2, 3, 4):
            flat: list[int] = []
            for k, d, p in zip(taps, own, _spatial(padding, n), strict=True):
                front = p * other // d
                flat = [front, 2 * p - (k - 1) * (d - other) - front, *flat]

            def convolve(input: Tensor, *, flat: list[int] = flat, d: int = other,
                         call: Call = call, **rest: object) -> Tensor:  # fmt: skip
                given = {**rest, "padding": 0, "dilation": d}
                result: Tensor = call.function(input=F.pad(input, flat), **given)
                return result

            if any(d != other for d in own):
                variants[f"dilation {other}"] = {call.index: Node(convolve, (), call.kwargs)}
        yield Site(call.owner, variants)


def _cut(
    call: Call, shift: int, shape: tuple[int, ...], padding: tuple[int, ...], kwargs: dict[str, Any]
) -> Tensor:
    """The window of `shape` in the unpadded transposed convolution, moved by `shift`."""
    n = len(padding)
    bias = kwargs.get("bias")
    whole: Tensor = call.function(
        **{**kwargs, "padding": [0] * n, "bias": None, "output_padding": 0}
    )
    for axis, p in enumerate(padding):
        start, size = p + shift, shape[2 + axis]
        left, right = max(0, -start), max(0, start + size - whole.size(2 + axis))
        pads = [0] * (2 * n)
        pads[2 * (n - 1 - axis)], pads[2 * (n - 1 - axis) + 1] = left, right
        whole = F.pad(whole, pads).narrow(2 + axis, start + left, size)
    return whole if bias is None else whole + bias.view(-1, *[1] * n)


def _paddings(
    graph: Graph, call: Call, source: Ref, amounts: list[tuple[int, int]]
) -> Iterator[tuple[str, Edits]]:
    stride = _spatial(call["stride"] or 1, len(amounts))
    most = [a + b + s - 1 for (a, b), s in zip(amounts, stride, strict=True)]

    def node(pairs: list[tuple[int, int]], mode: str = "constant") -> Edits:
        flat = [v for pair in reversed(pairs) for v in pair]

        def convolve(input: Tensor, **rest: object) -> Tensor:
            padded = F.pad(input, flat) if mode == "constant" else F.pad(input, flat, mode=mode)
            result: Tensor = call.function(input=padded, **{**rest, "padding": 0})
            return result

        return {call.index: Node(convolve, (), {**call.kwargs, "input": source})}

    modes = ("reflect", "replicate", "circular", "constant")
    for mode in modes:
        yield f"{mode} padding", node(amounts, mode)
    for left in range(max(most) + 1):
        pairs = [
            (min(left, m), max(0, a + b - min(left, m)))
            for m, (a, b) in zip(most, amounts, strict=True)
        ]
        yield f"padding {pairs[0][0]}, {pairs[0][1]}", node(pairs)
    yield "all padding in front", node([(a + b, 0) for a, b in amounts])
    yield "all padding behind", node([(0, a + b) for a, b in amounts])
    yield "sides exchanged", node([(b, a) for a, b in amounts])
    if any(s > 1 for s in stride):
        yield "one less in front", node([(max(0, a - 1), b) for a, b in amounts])
        yield (
            "one less in front, one more behind",
            node([(max(0, a - 1), b + 1) for a, b in amounts]),
        )
        yield "one less behind", node([(a, max(0, b - 1)) for a, b in amounts])
        yield "none in front", node([(0, b) for a, b in amounts])
