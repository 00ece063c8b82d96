"""Which tensor of the original a weight of the port is.

Weights of one signature are assigned to each other so that the sum of likenesses is largest. A
likeness is made of the order of first use, the kind, the names, and of how alike the weights are
that are used just before and after, which is taken from the round before: so a bias follows its
matrix, and a block its place, also where another block is missing or comes earlier.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment

from jaxformer.porting.carry.names import likeness, ranks
from jaxformer.porting.carry.weight import VECTORS, Weight

ROUNDS = 5
LEAST = -4.0
"""A pair that is less alike is none."""


_NOTHING: Mapping[Weight, Weight] = {}
Alike = dict[tuple[Weight, Weight], float]


def match(
    mine: Sequence[Weight],
    theirs: Sequence[Weight],
    key: Callable[[Weight], tuple] = lambda weight: weight.signature,
    known: Mapping[Weight, Weight] = _NOTHING,
) -> tuple[dict[Weight, Weight], Alike]:
    """The port's weights and the original's, each at most once, and how alike any two are.

    Args:
        mine: the port's.
        theirs: the original's.
        key: what two weights have in common that may be one.
        known: pairs that stay as they are.
    """
    groups = grouped(mine, theirs, key, known)
    rank = ranks(w.name for w in mine), ranks(w.name for w in theirs)
    rare = rarity(groups)
    here, there = around(mine, [g for g, _ in groups]), around(theirs, [g for _, g in groups])
    first = {
        (a, b): _own(a, b, i, len(group), j, len(others))
        + _ranked(rank[0].get(a.name), rank[1].get(b.name))
        - 0.5 * min(float(np.abs(here[a] - there[b]) @ rare), 8.0)
        for group, others in groups
        for i, a in enumerate(group)
        for j, b in enumerate(others)
    }
    after_mine, after_theirs = _after(mine), _after(theirs)
    alike = dict(first)
    for _ in range(ROUNDS):
        chosen = _assigned(groups, alike)
        alike = {
            (a, b): own
            + _shared(a.before, b.before, chosen)
            + _shared(after_mine.get(a, ()), after_theirs.get(b, ()), chosen)
            + (2.0 if a.added_to and chosen.get(a.added_to) is b.added_to is not None else 0.0)
            for (a, b), own in first.items()
        }
    return _assigned(groups, alike), alike


def grouped(
    mine: Sequence[Weight],
    theirs: Sequence[Weight],
    key: Callable[[Weight], tuple],
    known: Mapping[Weight, Weight],
) -> list[tuple[list[Weight], list[Weight]]]:
    """The weights of each key, in order of first use; a known pair by itself."""
    found: dict[tuple, tuple[list[Weight], list[Weight]]] = {}
    number = {weight: ("known", i) for i, pair in enumerate(known.items()) for weight in pair}
    for side, weights in enumerate((mine, theirs)):
        for weight in sorted(weights, key=lambda w: w.order):
            sign = number.get(weight) or key(weight)
            found.setdefault(sign, ([], []))[side].append(weight)
    return [pair for pair in found.values() if pair[0] and pair[1]]


def _own(a: Weight, b: Weight, i: int, count: int, j: int, others: int) -> float:
    kind = 0.0 if a.kind == b.kind else -1.5 if a.kind in VECTORS and b.kind in VECTORS else -0.5
    if "other" in (a.kind, b.kind):
        kind = max(kind, -0.5)
    place = abs(i - j) if count == others else max(0.0, abs(i / count - j / others) * others - 0.5)
    joint = 1.0 if (a.added_to is None) == (b.added_to is None) else 0.0
    late = min(0.05 * place + 0.001 * place**2, 1.0)
    return kind + joint - late + likeness(a.name, b.name)


def _ranked(a: tuple | None, b: tuple | None) -> float:
    """Whether both are the same one of as many, such as the second norm of two in a layer."""
    if a is None or b is None or a[1:] != b[1:] or a[1] == 1:
        return 0.0
    return 1.0 if a[0] == b[0] else -1.0


def rarity(groups: list[tuple[list[Weight], list[Weight]]]) -> np.ndarray:
    """How much a weight of each signature says about those before and after it."""
    counts = [max(len(group), len(others)) for group, others in groups]
    return np.tile([max(0.1, 1 / count) for count in counts], 2)


def around(
    weights: Sequence[Weight], groups: Sequence[Sequence[Weight]]
) -> dict[Weight, np.ndarray]:
    """How many weights of each group are used before and after each, on the way through it."""
    signs = {weight: number for number, group in enumerate(groups) for weight in group}
    ordered = sorted(weights, key=lambda w: w.order)
    number = {weight: i for i, weight in enumerate(ordered)}
    before = np.zeros((len(ordered), len(ordered)), bool)
    for weight, i in number.items():
        for other in weight.before:
            j = number.get(other, i)
            if j != i:
                before[i] |= before[j]
                before[i, j] = True
    kinds = np.zeros((len(ordered), len(groups)))
    for weight, i in number.items():
        if weight in signs:
            kinds[i, signs[weight]] = 1
    counts = np.concatenate([before @ kinds, before.T @ kinds], axis=1)
    return {weight: counts[i] for weight, i in number.items()}


def _after(weights: Sequence[Weight]) -> dict[Weight, list[Weight]]:
    found: dict[Weight, list[Weight]] = {}
    for weight in weights:
        for other in weight.before:
            found.setdefault(other, []).append(weight)
    return found


def _shared(
    mine: Sequence[Weight], theirs: Sequence[Weight], chosen: dict[Weight, Weight]
) -> float:
    """The share of neighbours that are pairs; of both none is one."""
    if not mine or not theirs:
        return 1.0 if not mine and not theirs else 0.0
    return sum(chosen.get(w) in theirs for w in mine) / min(len(mine), len(theirs))


def _assigned(
    groups: list[tuple[list[Weight], list[Weight]]], alike: Alike
) -> dict[Weight, Weight]:
    found = {}
    for group, others in groups:
        table = np.array([[alike[a, b] for b in others] for a in group])
        for i, j in zip(*linear_sum_assignment(table, maximize=True), strict=True):
            if table[i, j] > LEAST:
                found[group[i]] = others[j]
    return found
