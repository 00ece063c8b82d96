"""Pairs of texts and pairs of token sequences: the training data of translation."""

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
    """P token sequences of unequal lengths, concatenated."""

    tokens: Int[np.ndarray, " total"]
    """Token ids, uint16 or uint32; memory-mapped if loaded from a file."""
    offsets: Int[np.ndarray, " P+1"]
    """The start of each sequence, then the end of the last one; int64."""

    @classmethod
    def of(cls, sequences: Iterable[np.ndarray], dtype: str) -> "Sequences":
        """Concatenate arrays of ids."""
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
        """The number of tokens of each sequence."""
        return np.diff(self.offsets)

    def take(self, rows: Int[np.ndarray, " B"]) -> "Sequences":
        """A copy of the sequences at these indices, in this order."""
        lengths = self.lengths[rows]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        shift = np.repeat(self.offsets[rows] - offsets[:-1], lengths)
        return Sequences(self.tokens[np.arange(offsets[-1]) + shift], offsets)

    def padded(self, shape: tuple[int, int], fill: int) -> Int[np.ndarray, "B L"]:
        """One sequence per row, int32, padded with `fill` to `shape`, which must hold them all."""
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
        """Memory-map what `save` wrote; OSError or ValueError for any other file."""
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
        """The length of each pair in a batch: that of the source, or of the target with its start
        token if that is longer."""
        return np.maximum(self.sources.lengths, self.targets.lengths + 1)

    def take(self, rows: Int[np.ndarray, " B"]) -> "TokenPairs":
        """A copy of the pairs at these indices, in this order."""
        return TokenPairs(self.sources.take(rows), self.targets.take(rows))
