"""Faults of rotary positions: form, base."""

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from jaxformer.porting.causes.graph import Call, Edits, Graph, Node, Ref
from jaxformer.porting.causes.sites import (
    Number,
    Site,
    ancestors,
    descends,
    is_constant,
    remembered,
    same,
    tensor,
)

BASES = (500.0, 1e3, 5e3, 1e4, 2e4, 4e4, 1e5, 1.6e5, 5e5, 1e6, 5e6, 1e7)


Form = Callable[[Tensor, Tensor], Tensor]


def _halves(x: Tensor) -> tuple[Tensor, Tensor]:
    a, b = x.chunk(2, -1)
    return a, b


def _pairs(x: Tensor) -> tuple[Tensor, Tensor]:
    return x[..., 0::2], x[..., 1::2]


def _join_halves(a: Tensor, b: Tensor) -> Tensor:
    return torch.cat([a, b], -1)


def _join_pairs(a: Tensor, b: Tensor) -> Tensor:
    return torch.stack([a, b], -1).flatten(-2)


FORMS = {"halves": (_halves, _join_halves), "interleaved": (_pairs, _join_pairs)}


class Rotary(NamedTuple):
    """`call` is `x` with its pairs turned by `angles`, one for each pair of a vector."""

    x: Ref
    call: Call
    form: str
    angles: Tensor


@remembered
def rotaries(graph: Graph) -> list[Rotary]:
    found: dict[Ref, Rotary] = {}
    for call in graph.live:
        if call.name not in ("add", "cat", "flatten", "reshape", "view", "type_as", "float", "to"):
            continue
        y = tensor(graph, call.ref)
        if y is None or y.dim() < 2 or y.size(-1) % 2 or y.numel() < 4:
            continue
        behind = sorted(ancestors(graph, call, 14), key=lambda ref: ref.call)
        for ref in behind:  # the earliest: the rotation turns its input in itself too
            x = tensor(graph, ref)
            if x is None or x.shape != y.shape or ref in found:
                continue
            if any(other.call.ref == ref for other in found.values()) or same(x, y):
                continue
            form = _form(x, y)
            if form is not None:
                split, _ = FORMS[form]
                z = torch.complex(*(part.double() for part in split(x)))
                w = torch.complex(*(part.double() for part in split(y)))
                found[ref] = Rotary(ref, call, form, torch.angle(w / z))
                break
    return list(found.values())


def _form(x: Tensor, y: Tensor) -> str | None:
    for form, (split, _) in FORMS.items():
        a, b = split(x)
        c, d = split(y)
        if same(a**2 + b**2, c**2 + d**2, 1e-6) and not (
            same(a.abs(), c.abs()) or same(a.abs(), d.abs())  # a turn by a quarter is but a step
        ):
            return form
    return None


def _turn(form: str, x: Tensor, angles: Tensor) -> Tensor:
    split, join = FORMS[form]
    a, b = split(x)
    c, s = angles.cos(), angles.sin()
    return join(a * c - b * s, a * s + b * c)


def edited(found: Rotary, change: Callable[[Tensor], Tensor]) -> Edits:
    return {found.call.index: Node(change, (found.x,))}


def rotary_form(graph: Graph) -> Iterable[Site]:
    """Halves for neighbours, the reverse, the other direction, none."""
    for found in rotaries(graph):
        other = "interleaved" if found.form == "halves" else "halves"
        angles = found.angles
        split, join = FORMS[found.form]
        other_split, other_join = FORMS[other]

        def mixed(x: Tensor, tables: str, turn: str, angles: Tensor = angles) -> Tensor:
            """cos and sin stored in one form, the vector turned in another."""
            own_split, own_join = FORMS[turn]
            _, table = FORMS[tables]
            c, s = table(angles.cos(), angles.cos()), table(angles.sin(), angles.sin())
            a, b = own_split(x)
            return x * c + own_join(-b, a) * s

        variants = {
            f"{other} for {found.form}": edited(found, lambda x, o=other, a=angles: _turn(o, x, a)),
            f"turned as {other}, angles as {found.form}": edited(
                found, lambda x, o=other, f=found.form, m=mixed: m(x, f, o)
            ),
            f"turned as {found.form}, angles as {other}": edited(
                found, lambda x, o=other, f=found.form, m=mixed: m(x, o, f)
            ),
            "turned the other way": edited(
                found, lambda x, f=found.form, a=angles: _turn(f, x, -a)
            ),
            f"read as {other}, written as {found.form}": edited(
                found,
                lambda x, s=other_split, j=join, f=found.form, a=angles: _turn(f, j(*s(x)), a),
            ),
            f"read as {found.form}, written as {other}": edited(
                found,
                lambda x, s=split, j=other_join, f=found.form, a=angles: j(*s(_turn(f, x, a))),
            ),
            "sign of the second half": edited(
                found, lambda x, s=split, j=join, a=angles: _second_sign(s, j, x, a)
            ),
            "not turned": edited(found, lambda x: x),
        }
        yield Site(found.call.owner, variants)


def _second_sign(split: Callable, join: Callable, x: Tensor, angles: Tensor) -> Tensor:
    a, b = split(x)
    c, s = angles.cos(), angles.sin()
    result: Tensor = join(a * c + b * s, a * s + b * c)
    return result


class Positions(NamedTuple):
    """angles = position * frequency: the axis and first of the positions."""

    axis: int
    first: float
    frequencies: Tensor


def positions_of(angles: Tensor) -> Positions | None:
    """Consecutive positions along one axis of the angles, and the frequency of each pair."""
    axes = [
        d
        for d in range(angles.dim() - 1)
        if angles.size(d) > 1
        and not same(angles.cos(), angles.select(d, 0).unsqueeze(d).cos().expand_as(angles))
    ]
    if len(axes) != 1:
        return None
    axis = axes[0]
    table = angles.movedim(axis, 0)
    while table.dim() > 2:
        table = table[:, 0]
    step = torch.remainder(table[1] - table[0] + math.pi, 2 * math.pi) - math.pi
    first = float(torch.round(table[0, -1] / step[-1])) if float(step[-1]) else 0.0
    return Positions(axis, first, step)


def base_of(frequencies: Tensor) -> float | None:
    f = frequencies.abs()
    h = len(f)
    if h < 2 or float(f[1]) <= 0:
        return None
    return float((f[1] / f[0]) ** -h)


def formulas(h: int) -> Mapping[str, Tensor]:
    i = torch.arange(h, dtype=torch.float64)
    return {
        "i / (d/2)": i / h,
        "i / d": i / (2 * h),
        "2 i / (d/2)": 2 * i / h,
        "i / (d/2 - 1)": i / max(1, h - 1),
        "(i + 1) / (d/2)": (i + 1) / h,
        "(2 i + 1) / d": (2 * i + 1) / (2 * h),
        "i / (d - 1)": i / max(1, 2 * h - 1),
        "2 i / (d - 2)": i / max(1, h - 1),
        "2 i / (d - 1)": 2 * i / max(1, 2 * h - 1),
        "4 i / d, wrapped": (2 * i) % h / h,
        "i // 2 * 2 / (d/2)": (i // 2) * 2 / h,
        "reversed": (h - 1 - i) / h,
        "reversed to the end": (h - i) / h,
        "0": 0 * i,
    }


def from_positions(found: Rotary, p: Positions, first: float, frequencies: Tensor) -> Edits:
    shape = [1] * found.angles.dim()
    n = found.angles.size(p.axis)
    shape[p.axis] = n
    positions = (first + torch.arange(n, dtype=torch.float64)).view(shape)
    angles = positions * frequencies
    return edited(found, lambda x, f=found.form, a=angles: _turn(f, x, a))


def rotary_base(graph: Graph) -> Iterable[Site]:
    """Another base of the frequencies, or without the scaling of long contexts."""
    for found in rotaries(graph):
        p = positions_of(found.angles)
        if p is None:
            continue
        sign = torch.sign(p.frequencies[0])
        h = len(p.frequencies)
        i = torch.arange(h, dtype=torch.float64)
        yield Site(
            found.call.owner,
            {f"base {b:g}": from_positions(found, p, p.first, sign * b ** (-i / h)) for b in BASES},
        )
    for call, f in frequency_vectors(graph):
        h = len(f)
        i = torch.arange(h, dtype=torch.float64)
        variants: dict[str, Edits] = {}
        for b in BASES:
            values = f[0] * b ** (-i / h)
            if float(f[0]) == 1 and not same(values, f, 1e-9):
                variants[f"base {b:g}"] = replaced(graph, call, values)
            values = f[0] * b ** (-i / max(1, h - 1))
            if not same(values, f, 1e-9):
                variants[f"base {b:g}, exponents to the end"] = replaced(graph, call, values)
        yield Site(call.owner, variants)


def unusual_base(graph: Graph) -> Iterable[Site]:
    """A base that is none of the usual ones."""
    for found in rotaries(graph):
        p = positions_of(found.angles)
        if p is not None:
            make = functools.partial(_with_base, found, p)
            yield Site(found.call.owner, {"base": Number(make, BASES[::3])})
    for call, f in frequency_vectors(graph):
        if float(f[0]) == 1:
            make = functools.partial(_vector_with_base, graph, call, len(f))
            yield Site(call.owner, {"base": Number(make, BASES[::3])})


def _with_base(found: Rotary, p: Positions, base: float) -> Edits:
    h = len(p.frequencies)
    powers = base ** (-torch.arange(h, dtype=torch.float64) / h)
    return from_positions(found, p, p.first, torch.sign(p.frequencies[0]) * powers)


def _vector_with_base(graph: Graph, call: Call, h: int, base: float) -> Edits:
    return replaced(graph, call, base ** (-torch.arange(h, dtype=torch.float64) / h))


def frequency_vectors(graph: Graph) -> Iterator[tuple[Call, Tensor]]:
    """Geometric sequences that fall: the frequencies of rotary and sinusoidal positions."""
    found: list[Call] = []
    for call in graph.live:
        value = tensor(graph, call.ref)
        if value is None or value.numel() < 3 or value.numel() != max(value.shape, default=0):
            continue
        f = value.reshape(-1).double()
        ratios = f[1:] / f[:-1]
        if not bool(torch.isfinite(ratios).all()) or not 0 < float(ratios[0]) < 0.9999:
            continue
        if not same(ratios, ratios[0].expand_as(ratios), 1e-6) or not is_constant(graph, call.ref):
            continue
        if any(descends(graph, call, earlier) for earlier in [c.index for c in found]):
            continue
        found.append(call)
        yield call, f


def replaced(graph: Graph, call: Call, values: Tensor) -> Edits:
    return {call.index: graph.then(call, lambda v: values.to(v.dtype).reshape(v.shape))}
