"""Loading training batches, beside two common ways to load them.

    python -m benchmarks.data_loading

Every side reads windows of T + 1 tokens at random positions of the same memory-mapped uint16 file
and yields int32 inputs and targets of shape (B, T).
"""

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks import machine
from benchmarks.comparison import Benchmark, Entrant, parser
from benchmarks.side import Done, Work

BATCH_SIZE, CONTEXT_LENGTH, NUM_TOKENS = 64, 256, 20_000_000
AT_ONCE = 64
"""Batches of a repetition."""


class Windows:
    """A grain source whose item is one window."""

    def __init__(self, tokens: np.ndarray):
        self._tokens = tokens

    def __len__(self) -> int:
        return (len(self._tokens) - 1) // CONTEXT_LENGTH

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        start = index * CONTEXT_LENGTH
        window = self._tokens[start : start + CONTEXT_LENGTH + 1].astype(np.int32)
        return window[:-1], window[1:]


def whole_batches(path: str) -> Work:
    """Jaxformer: an item is the batch of a step; one grain thread reads ahead."""
    from jaxformer.data.batches import TrainingBatches, training_iterator

    source = TrainingBatches(tokens_of(path), BATCH_SIZE, CONTEXT_LENGTH, seed=0)
    return reading(training_iterator(source))


def single_records(path: str) -> Work:
    """Grain as in its guide: shuffled records, batched, default threads."""
    import grain

    records = grain.MapDataset.source(Windows(tokens_of(path))).seed(0).shuffle().repeat()
    return reading(iter(records.to_iter_dataset().batch(BATCH_SIZE)))


def stacked_slices(path: str) -> Work:
    """One slice per row, stacked, in the training process, as in small GPT repositories."""
    tokens, rng = tokens_of(path), np.random.default_rng(0)

    def batches() -> Iterator[object]:
        while True:
            starts = rng.integers(0, len(tokens) - CONTEXT_LENGTH, BATCH_SIZE)
            inputs = [tokens[i : i + CONTEXT_LENGTH].astype(np.int32) for i in starts]
            targets = [tokens[i + 1 : i + 1 + CONTEXT_LENGTH].astype(np.int32) for i in starts]
            yield np.stack(inputs), np.stack(targets)

    return reading(batches())


def tokens_of(path: str) -> np.ndarray:
    """The file, memory-mapped."""
    return np.memmap(path, dtype="<u2", mode="r")


def reading(batches: Iterator[object]) -> Work:
    """Take some batches."""

    def work() -> Done:
        for _ in range(AT_ONCE):
            next(batches)
        return Done([], count=AT_ONCE)

    return work


def main() -> int:
    """Measure and print."""
    benchmark = Benchmark("data_loading", parser(__doc__, repetitions=9).parse_args())
    machine.measure(benchmark)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokens.bin"
        np.random.default_rng(0).integers(0, 4096, NUM_TOKENS).astype("<u2").tofile(path)
        ways = {
            "jaxformer": "whole_batches",
            "grain, single records": "single_records",
            "stacked slices": "stacked_slices",
        }
        benchmark.compare(
            f"a batch, B {BATCH_SIZE}, T {CONTEXT_LENGTH}",
            [
                Entrant(name, f"benchmarks.data_loading:{way}", {"path": str(path)})
                for name, way in ways.items()
            ],
            per_second={"all": {"tokens": BATCH_SIZE * CONTEXT_LENGTH}},
        )
    return benchmark.end()


if __name__ == "__main__":
    sys.exit(main())
