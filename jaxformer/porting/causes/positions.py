"""Faults of positions: rotary embeddings, sinusoids, frequencies, offsets, scales of embeddings."""

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from jaxformer.porting.causes.graph import Call, Edits, Graph, Node, Ref
from jaxformer.porting.causes.norms import number
from jaxformer.porting.causes.sites import (
    LAYOUT,
    Number,
    Site,
    Variant,
    ancestors,
    attentions,
    behind_layout,
    descends,
    is_constant,
    leaf_of,
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


def _put(found: Rotary, change: Callable[[Tensor], Tensor]) -> Edits:
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
            f"{other} for {found.form}": _put(found, lambda x, o=other, a=angles: _turn(o, x, a)),
            f"turned as {other}, angles as {found.form}": _put(
                found, lambda x, o=other, f=found.form, m=mixed: m(x, f, o)
            ),
            f"turned as {found.form}, angles as {other}": _put(
                found, lambda x, o=other, f=found.form, m=mixed: m(x, o, f)
            ),
            "turned the other way": _put(found, lambda x, f=found.form, a=angles: _turn(f, x, -a)),
            f"read as {other}, written as {found.form}": _put(
                found,
                lambda x, s=other_split, j=join, f=found.form, a=angles: _turn(f, j(*s(x)), a),
            ),
            f"read as {found.form}, written as {other}": _put(
                found,
                lambda x, s=split, j=other_join, f=found.form, a=angles: j(*s(_turn(f, x, a))),
            ),
            "sign of the second half": _put(
                found, lambda x, s=split, j=join, a=angles: _second_sign(s, j, x, a)
            ),
            "not turned": _put(found, lambda x: x),
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


def _positions(angles: Tensor) -> Positions | None:
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


def _base(frequencies: Tensor) -> float | None:
    f = frequencies.abs()
    h = len(f)
    if h < 2 or float(f[1]) <= 0:
        return None
    return float((f[1] / f[0]) ** -h)


def _formulas(h: int) -> Mapping[str, Tensor]:
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


def _from_positions(found: Rotary, p: Positions, first: float, frequencies: Tensor) -> Edits:
    shape = [1] * found.angles.dim()
    n = found.angles.size(p.axis)
    shape[p.axis] = n
    positions = (first + torch.arange(n, dtype=torch.float64)).view(shape)
    angles = positions * frequencies
    return _put(found, lambda x, f=found.form, a=angles: _turn(f, x, a))


def rotary_base(graph: Graph) -> Iterable[Site]:
    """Another base of the frequencies, or without the scaling of long contexts."""
    for found in rotaries(graph):
        p = _positions(found.angles)
        if p is None:
            continue
        sign = torch.sign(p.frequencies[0])
        h = len(p.frequencies)
        i = torch.arange(h, dtype=torch.float64)
        yield Site(
            found.call.owner,
            {
                f"base {b:g}": _from_positions(found, p, p.first, sign * b ** (-i / h))
                for b in BASES
            },
        )
    for call, f in frequency_vectors(graph):
        h = len(f)
        i = torch.arange(h, dtype=torch.float64)
        variants: dict[str, Edits] = {}
        for b in BASES:
            values = f[0] * b ** (-i / h)
            if float(f[0]) == 1 and not same(values, f, 1e-9):
                variants[f"base {b:g}"] = _replaced(graph, call, values)
            values = f[0] * b ** (-i / max(1, h - 1))
            if not same(values, f, 1e-9):
                variants[f"base {b:g}, exponents to the end"] = _replaced(graph, call, values)
        yield Site(call.owner, variants)


def unusual_base(graph: Graph) -> Iterable[Site]:
    """A base that is none of the usual ones."""
    for found in rotaries(graph):
        p = _positions(found.angles)
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
    return _from_positions(found, p, p.first, torch.sign(p.frequencies[0]) * powers)


def _vector_with_base(graph: Graph, call: Call, h: int, base: float) -> Edits:
    return _replaced(graph, call, base ** (-torch.arange(h, dtype=torch.float64) / h))


def frequencies(graph: Graph) -> Iterable[Site]:
    """Frequencies by another formula."""
    for found in rotaries(graph):
        p = _positions(found.angles)
        base = None if p is None else _base(p.frequencies)
        if p is None or base is None:
            continue
        sign = torch.sign(p.frequencies[0])
        variants: dict[str, Edits] = {}
        for b in {round(base, 3), *(1e4,)}:
            for text, exponents in _formulas(len(p.frequencies)).items():
                new = sign * float(b) ** -exponents
                variants[f"{b:g}^-({text})"] = _from_positions(found, p, p.first, new)
        for factor in (0.125, 0.25, 0.5, 2.0, 4.0, 8.0, math.tau, math.pi):
            new = p.frequencies * factor
            variants[f"frequencies times {factor:g}"] = _from_positions(found, p, p.first, new)
        yield Site(found.call.owner, variants)
    for call, f in frequency_vectors(graph):
        if _is_slopes(graph, call):
            continue
        h = len(f)
        ratio = float(f[1] / f[0])
        variants = {}
        for b in {ratio**-h, ratio ** -(h - 1), *(1e4,)}:
            for text, exponents in _formulas(h).items():
                variants[f"{b:g}^-({text})"] = _replaced(graph, call, f[0] * b**-exponents)
        for factor in (0.125, 0.25, 0.5, 2.0, 4.0, 8.0, math.tau, math.pi, 1 / math.tau, 1e3, 1e-3):
            variants[f"frequencies times {factor:g}"] = _replaced(graph, call, f * factor)
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
            "2^-(i + 1)": 2.0 ** -(i + 1),
            "2^-i": 2.0**-i,
            "2^(-(i + 1) / n)": 2.0 ** (-(i + 1) / n),
            "reversed": f.flip(0),
            "1 / (i + 1)": 1 / (i + 1),
        }
        yield Site(
            call.owner,
            {f"slopes {text}": _replaced(graph, call, new) for text, new in formulas.items()},
        )


def _is_slopes(graph: Graph, call: Call) -> bool:
    waves = graph.named("sin", "cos", "polar")
    return bool(attentions(graph)) and not any(descends(graph, wave, call.index) for wave in waves)


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


def _replaced(graph: Graph, call: Call, values: Tensor) -> Edits:
    return {call.index: graph.then(call, lambda v: values.to(v.dtype).reshape(v.shape))}


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

        yield Site(found.call.owner, {"sine and cosine exchanged": _put(found, swapped)})
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
    p = _positions(angles)
    base = None if p is None else _base(p.frequencies)
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
        for text, exponents in _formulas(h).items():
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
        p = _positions(found.angles)
        if p is None:
            continue
        variants = {
            f"positions {k:+d}": _from_positions(found, p, p.first + k, p.frequencies)
            for k in shifts
        }
        for axis in range(found.angles.dim() - 1):
            if axis != p.axis:
                other = p._replace(axis=axis)
                variants[f"positions along axis {axis}"] = _from_positions(
                    found, other, p.first, p.frequencies
                )
        yield Site(found.call.owner, variants)
    for table in sinusoids(graph):
        angles = torch.atan2(table.sin, table.cos)
        p = _positions(angles)
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


def output_scale(graph: Graph) -> Iterable[Site]:
    """A multiplication by a number that is left out, done twice or inverted."""
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
        if factor in (0.0, 1.0):
            continue
        first = call.refs[0]
        yield Site(
            call.owner,
            {
                "not scaled": {call.index: Node(lambda x: x, (first,))},
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
