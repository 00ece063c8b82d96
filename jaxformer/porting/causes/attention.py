"""Faults of attention: scale, masks, the axis of softmax, key-value heads."""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from jaxformer.porting.causes.graph import Call, Edits, Graph, Node, Ref
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


class MaskUse(NamedTuple):
    """A mask at work: `call` hides some of the scores that `scores` is."""

    attention: Attention
    call: Call
    scores: Ref
    mask: Ref
    kind: str
    """How it hides: "fill" (True is hidden), "keep" (True is kept), "add" (very negative)."""
    value: float

    def hidden(self, mask: Tensor) -> Tensor:
        if self.kind == "fill":
            return mask.bool()
        return ~mask.bool() if self.kind == "keep" else mask < -100

    def apply(self, change: Callable[[Tensor], Tensor], value: float | None = None) -> Edits:
        """The mask changed from what it hides to `change` of it, and what hidden scores become."""
        fill = self.value if value is None else value

        def node(scores: Tensor, mask: Tensor) -> Tensor:
            if self.kind == "add":
                scores = scores + torch.where(mask < -100, 0.0, mask)
            return scores.masked_fill(change(self.hidden(mask)), fill)

        return {self.call.index: Node(node, (self.scores, self.mask))}


def mask_uses(graph: Graph) -> list[MaskUse]:
    uses = []
    for attention in attentions(graph):
        for call in attention.chain:
            use = _mask_use(graph, attention, call)
            if use is not None:
                uses.append(use)
    return uses


def _mask_use(graph: Graph, attention: Attention, call: Call) -> MaskUse | None:
    shape = graph.value(call.ref).shape

    def scalar(value: Any) -> float:
        return float(graph.value(value)) if isinstance(value, Ref) else float(value)

    def is_scores(value: object) -> bool:
        return isinstance(value, Ref) and graph.value(value).shape == shape

    if call.name in ("masked_fill", "masked_fill_"):
        mask = call.kwargs["mask"]
        return MaskUse(
            *(attention, call, call.kwargs["input"], mask, "fill", scalar(call.kwargs["value"]))
        )
    if call.name == "where":
        condition, a, b = (call.kwargs[k] for k in ("condition", "input", "other"))
        if is_scores(a) and (not isinstance(b, Ref) or graph.value(b).numel() == 1):
            return MaskUse(attention, call, a, condition, "keep", scalar(b))
        if is_scores(b) and (not isinstance(a, Ref) or graph.value(a).numel() == 1):
            return MaskUse(attention, call, b, condition, "fill", scalar(a))
    if call.name == "add" and len(call.refs) == 2:
        for scores, mask in (call.refs, call.refs[::-1]):
            m = tensor(graph, mask)
            if (
                m is not None
                and bool((m < -100).any())
                and bool((m > -100).any())
                and is_scores(scores)
            ):
                return MaskUse(attention, call, scores, mask, "add", float(m.min()))
    return None


def _sites(graph: Graph, changes: dict[str, Callable[[Tensor], Tensor]]) -> Iterator[Site]:
    """Every mask changed, with its own value for hidden scores and with a finite one."""
    for use in mask_uses(graph):
        variants: dict[str, Edits] = {}
        for what, change in changes.items():
            variants |= _fillings(use, what, change)
        yield Site(use.call.owner, variants)


def _fillings(use: MaskUse, what: str, change: Callable[[Tensor], Tensor]) -> dict[str, Edits]:
    """A changed mask, with what ports make of rows that it hides altogether."""
    return {
        what: use.apply(change),
        f"{what} (filled with -inf)": use.apply(change, -math.inf),
        f"{what} (rows without keys get zero)": _zero_rows(use, change),
        f"{what} (rows without keys get all)": _full_rows(use, change),
    }


def _zero_rows(use: MaskUse, change: Callable[[Tensor], Tensor]) -> Edits:
    edits = dict(use.apply(change, -math.inf))
    softmax = use.attention.softmax
    edits[softmax.index] = Node(
        lambda *a, **k: torch.nan_to_num(softmax.function(*a, **k)), softmax.args, softmax.kwargs
    )
    return edits


def _full_rows(use: MaskUse, change: Callable[[Tensor], Tensor]) -> Edits:
    softmax = use.attention.softmax
    if softmax.name != "softmax":
        return use.apply(change, -1e9)
    finite = Node(
        lambda input, **k: softmax.function(input=input.clamp(min=-1e9), **k), (), softmax.kwargs
    )
    return {**use.apply(change, -1e9), softmax.index: finite}


def inverted_mask(graph: Graph) -> Iterable[Site]:
    """What should be hidden is seen, and the reverse; the past is hidden, not the future."""
    return _sites(
        graph,
        {
            "mask inverted": torch.logical_not,
            "the past hidden, not the future": _transposed,
            "causal mask inverted": lambda h: _without_causal(h) | ~_causal(h),
            "padding mask inverted": lambda h: ~_without_causal(h) | _causal(h),
        },
    )


def _square(hidden: Tensor) -> bool:
    return hidden.dim() >= 2 and hidden.size(-1) == hidden.size(-2)


def _causal(hidden: Tensor) -> Tensor:
    """The part of a mask that hides the future."""
    if not _square(hidden) or not bool((hidden | ~_causal_alone(hidden)).all()):
        raise ValueError("not causal")
    return _causal_alone(hidden)


def _transposed(hidden: Tensor) -> Tensor:
    return _without_causal(hidden) | _causal(hidden).transpose(-1, -2)


def _shifted(k: int) -> Callable[[Tensor], Tensor]:
    """A causal mask whose diagonal is k columns further to the right."""

    def change(hidden: Tensor) -> Tensor:
        L, M = hidden.shape[-2:]
        if L == 1:
            raise ValueError("no queries")
        i, j = torch.arange(L)[:, None], torch.arange(M)[None]
        i = i + (M - L)
        if k < 0:
            return hidden | ((j > i + k) & (j <= i))
        own = torch.diagonal(hidden, M - L, -2, -1)  # whether each query hides itself
        own = torch.cat([torch.zeros_like(hidden[..., 0, : M - L]), own], dim=-1)
        return torch.where((j > i) & (j <= i + k), own.unsqueeze(-2).expand_as(hidden), hidden)

    return change


def _rolled(k: int, axis: int = -1) -> Callable[[Tensor], Tensor]:
    def change(hidden: Tensor) -> Tensor:
        n = hidden.size(axis)
        if n == 1:
            raise ValueError("nothing to shift")
        at = (torch.arange(n) + k).clamp(0, n - 1)
        return hidden.index_select(hidden.dim() + axis, at)

    return change


def _window(k: int) -> Callable[[Tensor], Tensor]:
    """The lower edge of a causal window k columns further to the right."""

    def change(hidden: Tensor) -> Tensor:
        L, M = hidden.shape[-2:]
        i, j = torch.arange(L)[:, None] + (M - L), torch.arange(M)[None]
        return (
            torch.where(j < i, _rolled(-k)(hidden), hidden)
            if k < 0
            else (hidden | (_rolled(-k)(hidden) & (j < i)))
        )

    return change


def _of_queries(hidden: Tensor) -> Tensor:
    own = torch.diagonal(hidden, 0, -2, -1)
    return own.unsqueeze(-1) | _causal(hidden)


def shifted_mask(graph: Graph) -> Iterable[Site]:
    """A diagonal, a length or a window that is off by one or two."""
    return _sites(
        graph,
        {
            "mask hides the token itself": _shifted(-1),
            "mask sees one token ahead": _shifted(1),
            "mask hides the token itself and the one before": _shifted(-2),
            "mask sees two tokens ahead": _shifted(2),
            "mask one key to the left": _rolled(1),
            "mask one key to the right": _rolled(-1),
            "mask one query up": _rolled(1, -2),
            "mask one query down": _rolled(-1, -2),
            "window one key shorter": _window(1),
            "window one key longer": _window(-1),
        },
    )


def _without_causal(hidden: Tensor) -> Tensor:
    if not _square(hidden):
        raise ValueError("not causal")
    own = torch.diagonal(hidden, 0, -2, -1)
    return own.unsqueeze(-2).expand_as(hidden)


def _causal_alone(hidden: Tensor) -> Tensor:
    L, M = hidden.shape[-2:]
    return torch.ones(L, M, dtype=torch.bool).triu(1 + M - L).expand_as(hidden)


def missing_mask(graph: Graph) -> Iterable[Site]:
    """A mask that is not applied, or one of two."""
    yield from _sites(graph, {"no mask": torch.zeros_like})
    uses = mask_uses(graph)
    for attention in {id(use.attention): use.attention for use in uses}.values():
        own = [use for use in uses if use.attention is attention]
        if len(own) > 1:
            edits: dict[int, Node] = {}
            for use in own:
                edits |= use.apply(torch.zeros_like)
            yield Site(attention.scores.owner, {"no masks": edits})
    yield from _sites(
        graph, {"causal mask missing": _without_causal, "padding mask missing": _causal_alone}
    )


def extra_mask(graph: Graph) -> Iterable[Site]:
    """A causal mask where PyTorch has none."""
    for attention in attentions(graph):
        scores = attention.scores
        L, M = scores.value.shape[-2:]
        hidden = torch.ones(L, M, dtype=torch.bool).triu(1)
        node = graph.then(scores, lambda s, h=hidden: s.masked_fill(h, -math.inf))
        yield Site(scores.owner, {"a causal mask": {scores.index: node}})


def mask_source(graph: Graph) -> Iterable[Site]:
    """The mask of other tokens: of the queries for that of the keys, of target for source."""
    uses = mask_uses(graph)
    for use in uses:
        variants: dict[str, Edits] = {}
        shape = graph.value(use.scores).shape
        for other in uses:
            if other.mask != use.mask:
                value = other.hidden(graph.value(other.mask))
                if value.dim() <= len(shape):
                    variants[f"mask of {other.call.owner or 'another attention'}"] = use.apply(
                        lambda _, value=value: value
                    )
        for call in graph.calls:
            if call.name != "input" or call.value.dim() != 2 or call.ref == use.mask:
                continue
            seen = call.value != 0
            if not bool(seen.all()) and bool(seen.any()):
                for what, hidden in (("hidden", seen), ("visible", ~seen)):
                    for axes, form in (
                        ("keys", hidden[:, None, None, :]),
                        ("queries", hidden[:, None, :, None]),
                    ):
                        if form.dim() > len(shape):
                            form = form.squeeze(1)
                        variants[f"input {call.index} ({what}) over the {axes}"] = use.apply(
                            lambda _, form=form: form
                        )
        variants |= _fillings(
            use, "mask over the queries, not the keys", lambda h: h.transpose(-1, -2)
        )
        variants |= _fillings(use, "padding of the queries, not of the keys", _of_queries)
        yield Site(use.call.owner, variants)


def mask_fill(graph: Graph) -> Iterable[Site]:
    """Hidden scores become a number that is not negative enough, or weights are hidden late."""
    fills = (
        *(-math.inf, torch.finfo(torch.float64).min, torch.finfo(torch.float32).min, -1e10, -1e9),
        *(-1e4, -65504.0, -1e5, -1e3, -100.0, -50.0, -10.0, -1.0, 0.0, 1e-9, 1.0, -1e-9, -20.0),
        *(-1e-4, -5.0, -1e2, -1e6, -30.0),
    )

    def keep(hidden: Tensor) -> Tensor:
        return hidden

    for use in mask_uses(graph):
        variants: dict[str, Variant] = {
            f"hidden scores {f:g}": use.apply(keep, f) for f in fills if f != use.value
        }
        variants["hidden scores -"] = Number(
            lambda f, use=use: use.apply(keep, -f), (0.3, 2.0, 8.0, 20.0)
        )
        for f in (-1e9, -1e4, -10.0, -100.0, -1.0):
            variants[f"{f:g} added to hidden scores"] = {
                use.call.index: Node(
                    lambda s, m, use=use, f=f: s + f * use.hidden(m).to(s.dtype),
                    (use.scores, use.mask),
                )
            }
        variants["rows without keys get all"] = _full_rows(use, keep)
        variants["rows without keys get zero"] = _zero_rows(use, keep)
        yield Site(use.call.owner, variants)
    yield from _hidden_late(graph)


def _hidden_late(graph: Graph) -> Iterator[Site]:
    """Weights set to zero after a softmax over all scores, not normalised again."""
    uses = mask_uses(graph)
    for attention in {id(use.attention): use.attention for use in uses}.values():
        own = [use for use in uses if use.attention is attention]
        softmax = attention.softmax

        def late(
            *args: Any, own: list[MaskUse] = own, softmax: Call = softmax, **kwargs: Any
        ) -> Tensor:
            weights: Tensor = softmax.function(*args[len(own) :], **kwargs)
            for use, mask in zip(own, args, strict=False):
                weights = weights.masked_fill(use.hidden(mask), 0.0)
            return weights

        edits: dict[int, Node] = {}
        for use in own:
            edits |= use.apply(torch.zeros_like)
        masks = tuple(use.mask for use in own)
        edits[softmax.index] = Node(late, (*masks, *softmax.args), softmax.kwargs)
        yield Site(softmax.owner, {"weights hidden after softmax": edits})


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
                if b is None or b.dim() < 2 or _mask_use(graph, attention, call) is not None:
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
