"""How an array of PyTorch differs from the same array of JAX: named maps, each with its inverse."""

from typing import NamedTuple, Protocol

import numpy as np


class Transform(Protocol):
    """An invertible map of an array; ValueError for an array that it does not fit."""

    def forward(self, array: np.ndarray) -> np.ndarray:
        """From JAX to PyTorch."""
        ...

    def inverse(self, array: np.ndarray) -> np.ndarray:
        """From PyTorch to JAX."""
        ...


class Transpose(NamedTuple):
    """The axes in another order: axis i of PyTorch's array is axis `axes[i]` of JAX's."""

    axes: tuple[int, ...]

    def forward(self, array: np.ndarray) -> np.ndarray:
        return array.transpose(self.axes)

    def inverse(self, array: np.ndarray) -> np.ndarray:
        return array.transpose(np.argsort(self.axes))


class Halves(NamedTuple):
    """Pairs along an axis: alternating in JAX, [a0 b0 a1 b1 ...], in halves in PyTorch, [a0 a1 ...
    b0 b1 ...].
    """

    axis: int

    def forward(self, array: np.ndarray) -> np.ndarray:
        return np.take(array, self._order(array), self.axis)

    def inverse(self, array: np.ndarray) -> np.ndarray:
        return np.take(array, np.argsort(self._order(array)), self.axis)

    def _order(self, array: np.ndarray) -> np.ndarray:
        if not -array.ndim <= self.axis < array.ndim:
            raise ValueError(f"an array of {array.ndim} axes has no axis {self.axis}")
        places = np.arange(array.shape[self.axis])
        return np.concatenate([places[0::2], places[1::2]])
