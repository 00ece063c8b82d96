"""Layouts: how the same numbers are arranged on two sides.

A layout is a reshape, a permutation of the axes, and a reshape: (B, L, D) is (B, H, L, K) after
splitting D and moving an axis, and NCHW is NHWC. `arrangements` lists the layouts between two
shapes, the most natural first.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator

import numpy as np

LARGEST_RANK = 5
SAMPLES = 512
"""Numbers that tell layouts apart."""
SIMILAR = 0.9
"""Two values that are more unlike than this are taken for independent."""
EXTREME = 1e8
"""Numbers beyond it are the fill of a mask: no evidence, and larger than everything else."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """A rearrangement of an array: reshape to `split`, permute `axes`, reshape to `shape`."""

    split: tuple[int, ...]
    axes: tuple[int, ...]
    shape: tuple[int, ...]

    def apply(self, array: np.ndarray) -> np.ndarray:
        """The array in this layout."""
        return array.reshape(self.split).transpose(self.axes).reshape(self.shape)

    def invert(self, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """What `apply` has made of an array of that shape."""
        moved = array.reshape([self.split[axis] for axis in self.axes])
        return moved.transpose(np.argsort(self.axes)).reshape(shape)

    @property
    def is_identity(self) -> bool:
        """Whether it leaves the order of the numbers as it is."""
        return self.axes == tuple(sorted(self.axes))

    def __str__(self) -> str:
        if self.is_identity:
            return f"as {self.shape}"
        return f"axes {self.axes} of {self.split} as {self.shape}"


@dataclasses.dataclass(frozen=True)
class Arrangements:
    """The layouts between two shapes, and which number each of them puts at some positions."""

    layouts: tuple[Layout, ...]
    positions: np.ndarray
    """Of the target, flat; all of a small one."""
    sources: np.ndarray
    """For each layout and position the flat index in the array."""


@functools.lru_cache(maxsize=4096)
def arrangements(shape: tuple[int, ...], target: tuple[int, ...]) -> Arrangements:
    """The layouts from one shape to the other; none if their sizes differ."""
    size = math.prod(shape)
    if size != math.prod(target) or not size:
        return Arrangements((), np.zeros(0, int), np.zeros((0, 0), int))
    positions = np.unique(np.linspace(0, size - 1, SAMPLES).astype(int))
    positions = np.unique((positions + positions % 7) % size)  # not all in one column
    marks = np.arange(size).reshape(shape)
    found: dict[bytes, tuple[Layout, np.ndarray]] = {}
    for layout in _candidates(shape, target):
        sources = layout.apply(marks).ravel()[positions]
        found.setdefault(sources.tobytes(), (layout, sources))
    layouts, rows = zip(*found.values(), strict=True)
    return Arrangements(layouts, positions, np.stack(rows))


def _candidates(shape: tuple[int, ...], target: tuple[int, ...]) -> Iterator[Layout]:
    if shape == target:
        yield Layout(shape, tuple(range(len(shape))), target)
    if len(shape) <= LARGEST_RANK:
        for axes in itertools.permutations(range(len(shape))):
            if tuple(shape[axis] for axis in axes) == target:
                yield Layout(shape, axes, target)
    yield Layout(shape, tuple(range(len(shape))), target)
    if len(shape) <= LARGEST_RANK:
        for axes in itertools.permutations(range(len(shape))):
            yield Layout(shape, axes, target)
    if len(target) <= LARGEST_RANK:
        for axes in itertools.permutations(range(len(target))):
            split = tuple(target[axis] for axis in np.argsort(axes))
            yield Layout(split, axes, target)


def nearest(value: np.ndarray, like: np.ndarray, limit: int = 2) -> list[tuple[float, Layout]]:
    """The layouts in which `value` is most similar to `like`, each with how unlike they still are.

    That is sqrt(1 - r^2), r the cosine between both: 0 if they differ by a factor alone, near 1 if
    they are independent. Where none is similar the most natural layouts come first.
    """
    known = arrangements(value.shape, like.shape)
    if not known.layouts:
        return []
    numbers, wanted = clean(value).ravel()[known.sources], clean(like).ravel()[known.positions]
    sizes = np.linalg.norm(numbers, axis=1) * np.linalg.norm(wanted)
    cosines = numbers @ wanted / np.where(sizes == 0, 1.0, sizes)
    unlike = np.sqrt(np.clip(1 - cosines**2, 0, 1))
    order = np.argsort(np.minimum(unlike, SIMILAR).round(6), kind="stable")[:limit]
    return [(float(unlike[i]), known.layouts[i]) for i in order]


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """||a - b|| / ||b||, blind to what a mask fills in on both sides."""
    a, b = clean(a), clean(b)
    size = float(np.linalg.norm(b.ravel()))
    error = float(np.linalg.norm((a - b).ravel()))
    return error / size if size else error


def clean(array: np.ndarray) -> np.ndarray:
    """The numbers without infinities and the fill of masks."""
    with np.errstate(invalid="ignore"):
        return np.where(np.abs(array) < EXTREME, array, 0.0)
