"""Faults of positions: sinusoids, frequencies, biases, offsets."""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from jaxformer.porting.causes.graph import Call, Edits, Graph, Node
from jaxformer.porting.causes.rotary import (
    BASES,
    FORMS,
    Rotary,
    base_of,
    edited,
    formulas,
    frequency_vectors,
    from_positions,
    positions_of,
    replaced,
    rotaries,
)
from jaxformer.porting.causes.sites import (
    Site,
    descends,
    leaf_of,
    remembered,
    same,
    tensor,
)


def frequencies(graph: Graph) -> Iterable[Site]:
    """Frequencies by another formula."""
    for found in rotaries(graph):
        p = positions_of(found.angles)
        base = None if p is None else base_of(p.frequencies)
        if p is None or base is None:
            continue
        sign = torch.sign(p.frequencies[0])
        variants: dict[str, Edits] = {}
        for b in {round(base, 3), *(1e4,)}:
            for text, exponents in formulas(len(p.frequencies)).items():
                new = sign * float(b) ** -exponents
                variants[f"{b:g}^-({text})"] = from_positions(found, p, p.first, new)
        for factor in (0.125, 0.25, 0.5, 2.0, 4.0, 8.0, math.tau, math.pi):
            new = p.frequencies * factor
            variants[f"frequencies times {factor:g}"] = from_positions(found, p, p.first, new)
        yield Site(found.call.owner, variants)
    for call, f in frequency_vectors(graph):
        if _is_slopes(graph, call):
            continue
        h = len(f)
        ratio = float(f[1] / f[0])
        variants = {}
        for b in {ratio**-h, ratio ** -(h - 1), *(1e4,)}:
            for text, exponents in formulas(h).items():
                variants[f"{b:g}^-({text})"] = replaced(graph, call, f[0] * b**-exponents)
        for factor in (0.125, 0.25, 0.5, 2.0, 4.0, 8.0, math.tau, math.pi, 1 / math.tau, 1e3, 1e-3):
            variants[f"frequencies times {factor:g}"] = replaced(graph, call, f * factor)
        yield Site(call.owner, variants)
    for table in sinusoids(graph):
        yield Site(table.call.owner, dict(_other_frequencies(graph, table)))


def slopes(graph: Graph) -> Iterable[Site]:
    """Slopes of a bias by distance (ALiBi) by another formula."""
    for call, f in frequency_vectors(graph):
        if not _is_slopes(graph, call):
            continue
        n = len(f)
        i = torch.arange(n, dtype=torch.float64)
        formulas = {
            "2^(-8 i / n)": 2.0 ** (-8 * i / n),
            "2^(-8 (i + 1) / n)": 2.0 ** (-8 * (i + 1) / n),
            "2^(-8 (i + 1) / 2n)": 2.0 ** (-4 * (i + 1) / n),
            "2^(-8 (2i + 1) / 2n)": 2.0 ** (-4 * (2 * i + 1) / n),
            "2^-(i + 1)": 2.0 ** -(i + 1),
            "2^-i": 2.0**-i,
            "2^(-(i + 1) / n)": 2.0 ** (-(i + 1) / n),
            "reversed": f.flip(0),
            "1 / (i + 1)": 1 / (i + 1),
        }
        yield Site(
            call.owner,
            {f"slopes {text}": replaced(graph, call, new) for text, new in formulas.items()},
        )


def _is_slopes(graph: Graph, call: Call) -> bool:
    waves = graph.named("sin", "cos", "polar")
    return not any(descends(graph, wave, call.index) for wave in waves)


class Sinusoid(NamedTuple):
    """A table of sines and cosines: `sin` and `cos` of each pair, and how they are arranged."""

    call: Call
    form: str
    sine_first: bool
    sin: Tensor
    cos: Tensor


@remembered
def sinusoids(graph: Graph) -> list[Sinusoid]:
    found: list[Sinusoid] = []
    for call in graph.live:
        value = tensor(graph, call.ref)
        if value is None or value.dim() < 2 or value.size(-1) < 4 or value.size(-1) % 2:
            continue
        if value.numel() > 10**6 or float(value.abs().max()) > 1 + 1e-6:
            continue
        for form, (split, _) in FORMS.items():
            a, b = (part.double() for part in split(value))
            if same(a**2 + b**2, torch.ones_like(a), 1e-6) and not same(a.abs(), b.abs()):
                if any(descends(graph, call, f.call.index) for f in found):
                    break
                sine_first = float(a.reshape(-1, a.size(-1))[:, -1].abs().mean()) < float(
                    b.reshape(-1, b.size(-1))[:, -1].abs().mean()
                )
                sin, cos = (a, b) if sine_first else (b, a)
                found.append(Sinusoid(call, form, sine_first, sin, cos))
                break
    return found


def _arranged(form: str, sine_first: bool, sin: Tensor, cos: Tensor) -> Tensor:
    _, join = FORMS[form]
    return join(sin, cos) if sine_first else join(cos, sin)


def sin_cos_order(graph: Graph) -> Iterable[Site]:
    """Sines and cosines exchanged, or in halves for neighbours."""
    for found in rotaries(graph):
        split, join = FORMS[found.form]

        def swapped(
            x: Tensor, found: Rotary = found, split: Callable = split, join: Callable = join
        ) -> Tensor:
            a, b = split(x)
            s, c = found.angles.cos(), found.angles.sin()
            result: Tensor = join(a * c - b * s, a * s + b * c)
            return result

        yield Site(found.call.owner, {"sine and cosine exchanged": edited(found, swapped)})
    for table in sinusoids(graph):
        variants: dict[str, Edits] = {}
        for form in FORMS:
            for sine_first in (True, False):
                if (form, sine_first) != (table.form, table.sine_first):
                    order = "sine, cosine" if sine_first else "cosine, sine"
                    values = _arranged(form, sine_first, table.sin, table.cos)
                    variants[f"{order} in {form}"] = _table(graph, table, values)
        yield Site(table.call.owner, variants)


def _table(graph: Graph, table: Sinusoid, values: Tensor) -> Edits:
    call = table.call
    return {call.index: graph.then(call, lambda v: values.to(v.dtype).reshape(v.shape))}


def _other_frequencies(graph: Graph, table: Sinusoid) -> Iterator[tuple[str, Edits]]:
    angles = torch.atan2(table.sin, table.cos)
    p = positions_of(angles)
    base = None if p is None else base_of(p.frequencies)
    if p is None or base is None:
        return
    n = angles.size(p.axis)
    shape = [1] * angles.dim()
    shape[p.axis] = n

    def built(first: float, frequencies: Tensor) -> Edits:
        at = (first + torch.arange(n, dtype=torch.float64)).view(shape) * frequencies
        at = at.expand_as(angles)
        return _table(graph, table, _arranged(table.form, table.sine_first, at.sin(), at.cos()))

    sign = torch.sign(p.frequencies[0])
    h = len(p.frequencies)
    for b in {round(base, 3), float(p.frequencies[1] / p.frequencies[0]) ** -(h - 1), *BASES}:
        for text, exponents in formulas(h).items():
            yield f"{b:g}^-({text})", built(p.first, sign * abs(b) ** -exponents)
    i = torch.arange(h, dtype=torch.float64)
    sines, cosines = base ** (-2 * i / h), base ** (-(2 * i + 1) / h)
    for text, a, b_ in (
        ("exponent by column", base ** (-2 * i / (2 * h)), base ** (-(2 * i + 1) / (2 * h))),
        ("exponent by twice the column", sines, cosines),
    ):
        at = (p.first + torch.arange(n, dtype=torch.float64)).view(shape)
        yield (
            text,
            _table(
                graph,
                table,
                _arranged(
                    table.form,
                    table.sine_first,
                    (at * a).sin().expand_as(angles),
                    (at * b_).cos().expand_as(angles),
                ),
            ),
        )


def position_offset(graph: Graph) -> Iterable[Site]:
    """Positions that start elsewhere, or that count padding."""
    shifts = (1, -1, 2, -2, 3)
    for found in rotaries(graph):
        p = positions_of(found.angles)
        if p is None:
            continue
        variants = {
            f"positions {k:+d}": from_positions(found, p, p.first + k, p.frequencies)
            for k in shifts
        }
        for axis in range(found.angles.dim() - 1):
            if axis != p.axis:
                other = p._replace(axis=axis)
                variants[f"positions along axis {axis}"] = from_positions(
                    found, other, p.first, p.frequencies
                )
        yield Site(found.call.owner, variants)
    for table in sinusoids(graph):
        angles = torch.atan2(table.sin, table.cos)
        p = positions_of(angles)
        if p is None:
            continue
        n = angles.size(p.axis)
        shape = [1] * angles.dim()
        shape[p.axis] = n
        variants = {}
        for k in shifts:
            at = (p.first + k + torch.arange(n, dtype=torch.float64)).view(shape) * p.frequencies
            at = at.expand_as(angles)
            values = _arranged(table.form, table.sine_first, at.sin(), at.cos())
            variants[f"positions {k:+d}"] = _table(graph, table, values)
        yield Site(table.call.owner, variants)
    for call in graph.named("embedding"):
        ids = call.kwargs["input"]
        n = graph.value(call.kwargs["weight"]).size(0)
        value = graph.value(ids)
        if value.is_floating_point() or value.dim() == 0:
            continue
        variants = {}
        for k in shifts:
            variants[f"positions {k:+d}"] = _index(graph, call, lambda i, k=k: i + k, n)
        L = value.size(-1)
        for k in range(4):
            counted = torch.arange(L).expand_as(value) + k
            variants[f"positions from {k} without regard to padding"] = _index(
                graph, call, lambda i, c=counted: c, n
            )
        if value.dim() == 2 and bool((value == value.flatten()[-1]).sum() > 1):
            rising = torch.cummax(value, -1).values
            variants["padding counted on"] = _index(graph, call, lambda i, r=rising: r, n)
        yield Site(call.owner, variants)
    for call in graph.named("arange"):
        for k in shifts:
            yield Site(
                call.owner,
                {f"positions {k:+d}": {call.index: graph.then(call, lambda v, k=k: v + k)}},
            )
    for call in graph.named("getitem", "narrow"):
        data = call.data
        leaf = None if data is None else leaf_of(graph, data)
        if data is None or leaf is None or leaf.name == "input":
            continue
        x, y = graph.value(data), call.value
        if not isinstance(y, Tensor) or x.dim() != y.dim():
            continue
        axes = [d for d in range(x.dim()) if x.size(d) != y.size(d)]
        if len(axes) != 1:
            continue
        axis, n = axes[0], y.size(axes[0])
        starts = [s for s in range(x.size(axis) - n + 1) if torch.equal(x.narrow(axis, s, n), y)]
        if not starts:
            continue
        variants = {}
        for k in shifts:
            at = (torch.arange(starts[0], starts[0] + n) + k).clamp(0, x.size(axis) - 1)
            variants[f"positions {k:+d}"] = {
                call.index: Node(lambda v, a=axis, at=at: v.index_select(a, at), (data,))
            }
        last = torch.arange(x.size(axis) - n, x.size(axis))
        variants["last rows of the table"] = {
            call.index: Node(lambda v, a=axis, at=last: v.index_select(a, at), (data,))
        }
        yield Site(call.owner, variants)


def _index(graph: Graph, call: Call, change: Callable[[Tensor], Tensor], n: int) -> Edits:
    return {
        call.index: Node(
            lambda input, **k: call.function(input=change(input).clamp(0, n - 1), **k),
            (),
            call.kwargs,
        )
    }
