"""Pairing by value: the place on the tape that holds the numbers of a PyTorch tensor.

Two values are the same if their sorted numbers are, so that no layout disturbs. Norms are compared
first; numbers are sorted on demand.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxformer.porting.layouts import clean


@dataclasses.dataclass
class Print:
    """The fingerprint of an array: its size, its norm and, on demand, its sorted numbers."""

    array: np.ndarray
    size: int
    norm: float
    _sorted: np.ndarray | None = None

    @classmethod
    def of(cls, value: Any) -> "Print | None":
        """The fingerprint of a value; None if it is not of floating point numbers."""
        if not isinstance(value, np.ndarray) or not value.size:
            return None
        if not jnp.issubdtype(value.dtype, jnp.floating):
            return None
        array = clean(np.asarray(value, np.float64))
        return cls(array, array.size, float(np.linalg.norm(array.ravel())))

    @property
    def sorted(self) -> np.ndarray:
        """The numbers in ascending order."""
        if self._sorted is None:
            self._sorted = np.sort(self.array, axis=None)
        return self._sorted

    def same(self, other: "Print", bound: float) -> bool:
        """Whether both hold the same numbers in whatever order, to a relative error."""
        if self.size != other.size or abs(self.norm - other.norm) > bound * other.norm:
            return False
        difference = np.linalg.norm(self.sorted - other.sorted)
        return bool(difference <= bound * other.norm)


class Index:
    """Fingerprints by place, to find those of a given value."""

    def __init__(self, prints: Mapping[int, Print | None]):
        groups: dict[int, list[int]] = {}
        for place, mark in prints.items():
            if mark is not None:
                groups.setdefault(mark.size, []).append(place)
        self.prints = prints
        self.groups = {
            size: (np.array(places), np.array([_norm(prints[place]) for place in places]))
            for size, places in groups.items()
        }

    def find(self, mark: Print, bound: float, without: Iterable[int] = ()) -> list[int]:
        """The places that hold the same numbers, in order of execution."""
        if mark.size not in self.groups:
            return []
        places, norms = self.groups[mark.size]
        near = places[np.abs(norms - mark.norm) <= bound * mark.norm]
        out = set(without)
        found = []
        for place in near.tolist():
            other = self.prints[place]
            if place not in out and other is not None and other.same(mark, bound):
                found.append(place)
        return sorted(found)


def _norm(mark: Print | None) -> float:
    return 0.0 if mark is None else mark.norm
