"""Weights that one side has as one and the other as several: qkv, gate and up, [x, h], heads.

Only where the numbers of weights of a signature differ on the two sides is anything joined, and
only what is multiplied with the same value.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from jaxformer.porting.carry.names import meanings
from jaxformer.porting.carry.weight import Weight, joined

MATRICES = ("matrix", "kernel")
ORDER = ("query", "key", "value")
"""The order of projections that are fused."""


def merge_heads(weights: list[Weight], others: Sequence[Weight]) -> list[Weight]:
    """Rows of a batched product as one matrix, where the other side has no single ones."""
    known = signatures(others)
    batches: dict[tuple[int, str], list[Weight]] = {}
    for weight in weights:
        if weight.name.endswith("]"):
            batches.setdefault((weight.order, weight.name.rpartition("[")[0]), []).append(weight)
    made = list(weights)
    for parts in batches.values():
        whole = dataclasses.replace(joined(parts), name=parts[0].name.removesuffix("[0]"), parts=())
        if known[whole.signature] and not known[parts[0].signature]:
            replace(made, parts, whole)
    return made


def split_rows(weights: list[Weight], others: Sequence[Weight]) -> list[Weight]:
    """A product of several outputs as one matrix each, where the other side has no joined one."""
    known = signatures(others)
    made = list(weights)
    for weight in weights:
        if weight.kind != "matrix" or weight.rows < 2 or known[weight.signature]:
            continue
        parts = [
            dataclasses.replace(weight, name=f"{weight.name}.{i}", ids=ids, rows=1)
            for i, ids in enumerate(np.split(weight.ids, weight.rows))
        ]
        if known[parts[0].signature] >= weight.rows:
            at = made.index(weight)
            made[at : at + 1] = parts
            bias = bias_of(weight, made)
            if bias is not None:
                at = made.index(bias)
                made[at : at + 1] = [
                    dataclasses.replace(bias, name=f"{bias.name}.{i}", ids=ids, added_to=part)
                    for i, (part, ids) in enumerate(
                        zip(parts, np.split(bias.ids, weight.rows), strict=True)
                    )
                ]
            for other in made:
                if weight in other.before:
                    other.before = (*(w for w in other.before if w is not weight), *parts)
    return made


def join(weights: list[Weight], others: Sequence[Weight]) -> list[Weight]:
    """Siblings as one matrix, with their biases, where the other side has it as one."""
    made = list(weights)
    own, known = signatures(made), signatures(others)
    for other in sorted(others, key=lambda w: w.order):
        kind = other.signature
        if other.kind not in MATRICES or own[kind] >= known[kind]:
            continue
        for run in siblings(made, other):
            if all(own[part.signature] > known[part.signature] for part in run):
                whole = joined(run)
                biases = [bias_of(part, made) for part in run]
                replace(made, run, whole)
                if all(biases):
                    bias = joined([b for b in biases if b is not None])
                    bias.added_to = whole
                    replace(made, bias.parts, bias)
                own = signatures(made)
                break
    return made


def siblings(weights: Sequence[Weight], other: Weight) -> Iterator[list[Weight]]:
    """Runs of matrices of one source whose rows are as many as those of a matrix."""
    by_source: dict[int, list[Weight]] = {}
    for weight in sorted(weights, key=lambda w: w.order):
        single = weight.kind in MATRICES and not weight.parts and weight.source >= 0
        if single and weight.signature[2:] == other.signature[2:]:
            by_source.setdefault(weight.source, []).append(weight)
    for several in by_source.values():
        for start in range(len(several)):
            for end in range(start + 2, len(several) + 1):
                run = several[start:end]
                if sum(part.ids.shape[0] for part in run) == other.ids.shape[0]:
                    yield in_order(run)


def in_order(parts: Sequence[Weight]) -> list[Weight]:
    """Queries, keys and values in this order; what has no such names as it is executed."""
    roles = [[role for role in ORDER if role in meanings(part.name)] for part in parts]
    if all(len(role) == 1 for role in roles) and len({role[0] for role in roles}) == len(parts):
        return [part for _, part in sorted(zip(roles, parts, strict=True), key=_role)]
    return list(parts)


def _role(pair: tuple[list[str], Weight]) -> int:
    return ORDER.index(pair[0][0])


def bias_of(weight: Weight, weights: Sequence[Weight]) -> Weight | None:
    """The bias that is added to the output of a matrix."""
    return next((w for w in weights if w.added_to is weight), None)


def replace(weights: list[Weight], parts: Sequence[Weight], whole: Weight) -> None:
    """Put one weight in the place of several, also where others have them as neighbours."""
    at = min(weights.index(part) for part in parts)
    kept = [w for w in weights if w not in parts]
    weights[:] = [*kept[:at], whole, *kept[at:]]
    for weight in weights:
        before = [whole if w in parts else w for w in weight.before if weight is not whole]
        if weight is not whole:
            weight.before = tuple(dict.fromkeys(before))
    inner = {id(part) for part in parts}
    whole.before = tuple(w for w in whole.before if id(w) not in inner)


def signatures(weights: Sequence[Weight]) -> Counter:
    """How many weights there are of each signature."""
    return Counter(weight.signature for weight in weights)


def whole_arrays(
    weights: list[Weight], by_name: dict[str, list[Weight]], ids: dict[str, np.ndarray],
    shapes: Sequence[tuple[int, ...]],
) -> list[Weight]:  # fmt: skip
    """Leaves that are read in parts as one, where they are read in part or the other side has it.

    Args:
        weights: of one side.
        by_name: its weights by leaf or tensor.
        ids: all positions of each leaf or tensor.
        shapes: of the arrays of the other side.
    """
    other = Counter(_sizes(shape) for shape in shapes)
    made = list(weights)
    for name, uses in by_name.items():
        if not uses:
            continue
        read = sum(use.ids.size for use in uses)
        partly = read < ids[name].size
        known = len(uses) > 1 and other[_sizes(ids[name].shape)]
        within = all(np.isin(use.ids, ids[name]).all() for use in uses)
        if within and (partly or known):
            first = min(uses, key=lambda w: w.order)
            whole = Weight(name, ids[name], "other", first.order, first.before)
            if ids[name].ndim == 1:
                whole.kind, whole.added_to = first.kind, first.added_to
            elif ids[name].ndim == 2 and all(use.kind == "matrix" for use in uses):
                whole.kind, whole.source = "matrix", first.source
                whole.ids = turned(ids[name], first.ids)
            elif ids[name].ndim == 2 and first.kind in ("table", "other"):
                whole.kind = "table"
            replace(made, uses, whole)
            for weight in made:
                weight.added_to = whole if weight.added_to in uses else weight.added_to
    return made


def turned(ids: np.ndarray, part: np.ndarray) -> np.ndarray:
    """The positions of a matrix with the inputs in the columns, as a part of it has them."""
    steps = np.diff(part[0]) if part.shape[1] > 1 else np.array([1])
    return ids if (steps == 1).all() else ids.T


def _sizes(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted(n for n in shape if n > 1))
