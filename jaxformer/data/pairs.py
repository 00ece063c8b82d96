"""Pairs of texts and of token sequences of unequal lengths: what translation learns from."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from jaxformer.atomic import atomic_write


class Pair(NamedTuple):
    """A text and its translation, neither with a newline."""

    source: str
    target: str


@dataclasses.dataclass(frozen=True)
class Sequences:
    """P token sequences of unequal lengths, laid end to end."""

    tokens: Int[np.ndarray, " total"]
    """Token ids, uint16 or uint32; memory-mapped where they come from a file."""
    offsets: Int[np.ndarray, " P+1"]
    """Where each begins, then where the last one ends; int64."""

    @classmethod
    def of(cls, sequences: Iterable[np.ndarray], dtype: str) -> "Sequences":
        """Lay arrays of ids end to end."""
        arrays = [np.empty(0, dtype), *(array.astype(dtype) for array in sequences)]
        offsets = np.cumsum([len(array) for array in arrays])
        return cls(np.concatenate(arrays), offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> Int[np.ndarray, " L"]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]

    @property
    def lengths(self) -> Int[np.ndarray, " P"]:
        """Tokens of each."""
        return np.diff(self.offsets)

    def take(self, rows: Int[np.ndarray, " B"]) -> "Sequences":
        """Those of the given numbers, copied, in that order."""
        lengths = self.lengths[rows]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        shift = np.repeat(self.offsets[rows] - offsets[:-1], lengths)
        return Sequences(self.tokens[np.arange(offsets[-1]) + shift], offsets)

    def padded(self, shape: tuple[int, int], fill: int) -> Int[np.ndarray, "B L"]:
        """One a row, int32, `fill` in the places that are left; `shape` has room for all."""
        out = np.full(shape, fill, dtype=np.int32)
        out[: len(self)][np.arange(shape[1]) < self.lengths[:, None]] = self.tokens
        return out

    def save(self, path: Path) -> None:
        """Write `PATH.npy` and `PATH.offsets.npy`."""
        for suffix, array in ((".npy", self.tokens), (".offsets.npy", self.offsets)):
            with atomic_write(path.with_name(path.name + suffix)) as file:
                np.save(file, array)

    @classmethod
    def load(cls, path: Path) -> "Sequences":
        """Map into memory what `save` wrote. OSError or ValueError if it is not that."""
        return cls(*(_mapped(path.with_name(path.name + s)) for s in (".npy", ".offsets.npy")))


def _mapped(path: Path) -> np.ndarray:
    return np.load(path, mmap_mode="r", allow_pickle=False)


@dataclasses.dataclass(frozen=True)
class TokenPairs:
    """P pairs of token sequences, without start, end and padding tokens."""

    sources: Sequences
    targets: Sequences

    def __len__(self) -> int:
        return len(self.sources)

    @property
    def lengths(self) -> Int[np.ndarray, " P"]:
        """Places each pair takes in a batch: the longer of the source and the target with its
        start token."""
        return np.maximum(self.sources.lengths, self.targets.lengths + 1)

    def take(self, rows: Int[np.ndarray, " B"]) -> "TokenPairs":
        """The pairs of the given numbers, copied, in that order."""
        return TokenPairs(self.sources.take(rows), self.targets.take(rows))
