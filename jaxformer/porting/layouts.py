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


@functools.lru_cache(maxsize=4096)
def arrangements(shape: tuple[int, ...], target: tuple[int, ...]) -> tuple[Layout, ...]:
    """The layouts from one shape to the other; none if their sizes differ."""
    if math.prod(shape) != math.prod(target):
        return ()
    found: dict[tuple[int, ...], Layout] = {}
    marks = np.arange(math.prod(shape)) if math.prod(shape) <= 4096 else None
    for layout in _candidates(shape, target):
        key = (*layout.split, -1, *layout.axes)
        if marks is not None:  # two descriptions of one order are one layout
            key = tuple(layout.apply(marks.reshape(shape)).ravel().tolist())
        found.setdefault(key, layout)
    return tuple(found.values())


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
    """The layouts in which `value` is nearest to `like`, with the relative error of each."""
    scored = [
        (distance(layout.apply(value), like), number, layout)
        for number, layout in enumerate(arrangements(value.shape, like.shape))
    ]
    return [(error, layout) for error, _, layout in sorted(scored, key=lambda x: x[:2])[:limit]]


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
