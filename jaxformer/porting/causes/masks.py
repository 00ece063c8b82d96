"""Faults of attention's masks: inverted, shifted, missing, of another source, filled otherwise."""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from jaxformer.porting.causes.graph import Call, Edits, Graph, Node, Ref
from jaxformer.porting.causes.sites import (
    Attention,
    Number,
    Site,
    Variant,
    attentions,
    tensor,
)

MASKED = -100.0
"""What is added to a score to hide it is no greater (Swin adds -100)."""


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
        return ~mask.bool() if self.kind == "keep" else mask <= MASKED

    def apply(self, change: Callable[[Tensor], Tensor], value: float | None = None) -> Edits:
        """The mask changed from what it hides to `change` of it, and what hidden scores become."""
        fill = self.value if value is None else value

        def node(scores: Tensor, mask: Tensor) -> Tensor:
            if self.kind == "add":
                scores = scores + torch.where(mask <= MASKED, 0.0, mask)
            return scores.masked_fill(change(self.hidden(mask)), fill)

        return {self.call.index: Node(node, (self.scores, self.mask))}


def mask_uses(graph: Graph) -> list[MaskUse]:
    uses = []
    for attention in attentions(graph):
        for call in attention.chain:
            use = mask_use(graph, attention, call)
            if use is not None:
                uses.append(use)
    return uses


def mask_use(graph: Graph, attention: Attention, call: Call) -> MaskUse | None:
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
                and bool((m <= MASKED).any())
                and bool((m > MASKED).any())
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
