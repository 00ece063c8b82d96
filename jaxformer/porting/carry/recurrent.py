"""The weights of recurrent layers, of which a cell has two kernels and PyTorch two biases.

A port multiplies x and h by one kernel or by two, in one product or one for each gate, and adds one
bias or two: where it has one, that is the sum of both.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from jaxformer.porting.carry.joining import bias_of, replace, signatures
from jaxformer.porting.carry.weight import Weight, joined

IH, HH = "weight_ih", "weight_hh"


def cells(weights: Sequence[Weight]) -> Iterator[tuple[Weight, Weight]]:
    """The kernels of x and of h of each cell."""
    by_name = {weight.name: weight for weight in weights}
    for name, weight in by_name.items():
        other = by_name.get(name.replace(IH, HH))
        if IH in name and other is not None:
            yield weight, other


def join_cells(weights: list[Weight], others: Sequence[Weight]) -> list[Weight]:
    """Both kernels of a cell as one along the inputs, where the other side has it as one."""
    made = list(weights)
    for pair in cells(weights):
        whole = joined(pair, axis=1)
        if signatures(made)[whole.signature] < signatures(others)[whole.signature]:
            replace(made, pair, whole)
    return made


def biases(
    pairs: Mapping[Weight, Weight], mine: Sequence[Weight], tensors: Sequence[Weight]
) -> dict[Weight, Weight]:
    """All pairs, those of the biases of cells by the kernels to whose outputs they are added.

    Args:
        pairs: as they were matched.
        mine: the weights of the port.
        tensors: those of the original, before any were joined.
    """
    back = {theirs: weight for weight, theirs in pairs.items()}
    whole = {part: weight for weight in back for part in weight.parts}
    by_name = {weight.name: weight for weight in tensors}
    found: dict[Weight, Weight] = {}
    known: set[Weight] = set()
    for kernels in cells(tensors):
        names = [kernel.name.replace("weight", "bias") for kernel in kernels]
        both = [by_name[name] for name in names if name in by_name]
        if len(both) < 2:
            continue
        known |= set(both)
        owners = [back.get(whole.get(kernel, kernel)) for kernel in kernels]
        sides = [rows(owner, mine) if owner else {} for owner in dict.fromkeys(owners)]
        for side, own in zip(sides, both, strict=False):
            for start, bias in side.items():
                other = both[1] if own is both[0] else both[0]
                alone = sum(start in several for several in sides) == 1
                found[bias] = part(own, other if alone else None, start, bias.ids.size)
    kept = {
        a: b
        for a, b in pairs.items()
        if b not in known and a not in found and not set(a.parts) & set(found)
    }
    return {**kept, **found}


def rows(matrix: Weight, weights: Sequence[Weight]) -> dict[int, Weight]:
    """The biases that are added to a matrix's output, by the first row of each."""
    single = [b for weight in weights for b in (weight.parts or (weight,))]
    starts = np.cumsum([0, *(part.ids.shape[0] for part in matrix.parts)])
    owners = dict(zip(starts.tolist(), matrix.parts or (matrix,), strict=False))
    biases_of = {start: bias_of(owner, single) for start, owner in owners.items()}
    return {start: bias for start, bias in biases_of.items() if bias is not None}


def part(bias: Weight, other: Weight | None, start: int, size: int) -> Weight:
    """Some rows of a bias, to which those of another are added."""
    ids = bias.ids[start : start + size]
    plus = None if other is None else other.ids[start : start + size]
    return Weight(bias.name, ids, "bias", bias.order, plus=plus)
