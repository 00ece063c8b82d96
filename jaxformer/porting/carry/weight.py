"""What a leaf of the port and a tensor of the original have in common: how they are used.

Both sides become lists of `Weight`s. A weight is an array of positions (in all leaves, or in all
tensors, one after the other) in a form that does not depend on how the numbers are stored: a matrix
is (O, I), a convolution (O, I, *S), whatever axes the code contracts. To carry is to write the
tensors' numbers to the positions of the leaves.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

VECTORS = ("gain", "bias", "mean", "variance")
"""Kinds of weights that act number by number."""


@dataclasses.dataclass(eq=False)
class Weight:
    """A leaf, a tensor or a part of one as the code uses it."""

    name: str
    ids: np.ndarray
    """Positions, in the form of its kind: matrix (O, I), kernel (O, I, *S), table (V, D), else the
    shape that it has."""
    kind: str
    """matrix, kernel, table, gain, bias, mean, variance or other."""
    order: int
    """The place on the tape, or the value, of its first use."""
    before: tuple["Weight", ...] = ()
    """The weights used just before it on the way from the inputs."""
    added_to: "Weight | None" = None
    """Of a bias: the matrix or kernel whose output it is added to."""
    source: int = -1
    """What a matrix is multiplied with; those of one source are siblings."""
    parts: tuple["Weight", ...] = ()
    """What it is made of, if it is several that the other side has as one."""
    axis: int = 0
    """The axis along which the parts follow each other."""
    rows: int = 1
    """Of a matrix: how many parts its rows are, one after the other, by the leaf's first axis."""
    plus: np.ndarray | None = None
    """Positions whose numbers are added: a recurrent layer of one bias where the other has two."""

    @property
    def signature(self) -> tuple:
        """What two weights have in common that are one: the group of the kind, and the sizes."""
        if self.kind in VECTORS:
            return ("vector", self.ids.size)
        if self.kind in ("matrix", "kernel"):
            shape = self.ids.shape
            return ("matrix", *shape[:2], *(n for n in shape[2:] if n > 1))
        if self.kind == "table":
            return ("table", *self.ids.shape)
        return ("other", *sorted(n for n in self.ids.shape if n > 1))


def joined(parts: Sequence[Weight], axis: int = 0) -> Weight:
    """Several matrices as the one that they are for the other side."""
    ids = np.concatenate([part.ids for part in parts], axis)
    first = parts[0]
    return Weight(
        "+".join(part.name for part in parts),
        ids,
        first.kind,
        first.order,
        first.before,
        source=first.source,
        parts=tuple(parts),
        axis=axis,
    )


def whole_of(name: str, ids: np.ndarray, uses: Sequence[Weight]) -> Weight:
    """A leaf or tensor as it is stored, in the place of its several uses."""
    first = uses[0]
    kind = "table" if first.kind == "table" else "other"
    return Weight(name, ids, kind, first.order, first.before, source=first.source)


def unbroadcast(ids: np.ndarray) -> np.ndarray:
    """Each position once, where an axis repeats them."""
    for axis in range(ids.ndim):
        if ids.shape[axis] > 1:
            first = ids.take([0], axis)
            if (ids == first).all():
                ids = first
    return ids
