"""Tokens per second of loading training batches, next to two common ways to load them.

    python -m benchmarks.data_loading
    python -m benchmarks.data_loading --json data_loading.json

Every way reads windows of T + 1 tokens at random positions of the same memory-mapped uint16 file
and yields int32 inputs and targets of shape (B, T). Reports the median, slowest and fastest of the
repetitions.
"""

import argparse
import contextlib
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Generator
from pathlib import Path
from typing import NamedTuple

import grain
import numpy as np

from jaxformer.data.batches import TrainingBatches, training_iterator

BATCH_SIZE, CONTEXT_LENGTH, NUM_TOKENS = 64, 256, 20_000_000

Loading = Generator[object, None, None]


class Rate(NamedTuple):
    """Tokens per second of one way to load."""

    way: str
    median: float
    slowest: float
    fastest: float


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


def whole_batches(tokens: np.ndarray) -> Loading:
    """Jaxformer: an item is the batch of a step; one grain thread reads ahead."""
    source = TrainingBatches(tokens, BATCH_SIZE, CONTEXT_LENGTH, seed=0)
    with contextlib.closing(training_iterator(source)) as batches:
        yield from batches


def single_records(tokens: np.ndarray) -> Loading:
    """Grain as in its guide: shuffled records, batched, default threads."""
    records = grain.MapDataset.source(Windows(tokens)).seed(0).shuffle().repeat()
    with contextlib.closing(iter(records.to_iter_dataset().batch(BATCH_SIZE))) as batches:
        yield from batches


def stacked_slices(tokens: np.ndarray) -> Loading:
    """One slice per row, stacked, in the training process, as in small GPT repositories."""
    rng = np.random.default_rng(0)
    while True:
        starts = rng.integers(0, len(tokens) - CONTEXT_LENGTH, BATCH_SIZE)
        inputs = [tokens[i : i + CONTEXT_LENGTH].astype(np.int32) for i in starts]
        targets = [tokens[i + 1 : i + 1 + CONTEXT_LENGTH].astype(np.int32) for i in starts]
        yield np.stack(inputs), np.stack(targets)


def tokens_per_second(batches: Loading, seconds: float) -> float:
    """The rate over `seconds`, after one batch to start threads and fill caches."""
    next(batches)
    start, num_batches = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        next(batches)
        num_batches += 1
    return num_batches * BATCH_SIZE * CONTEXT_LENGTH / (time.perf_counter() - start)


def measure(tokens: np.ndarray, repetitions: int, seconds: float) -> list[Rate]:
    """One row per way, measured in turns, so that a slow phase of the machine affects all ways."""
    ways = (whole_batches, single_records, stacked_slices)
    rates: dict[str, list[float]] = {way.__name__: [] for way in ways}
    for _ in range(repetitions):
        for way in ways:
            with contextlib.closing(way(tokens)) as batches:
                rates[way.__name__].append(tokens_per_second(batches, seconds))
    return [Rate(way, statistics.median(r), min(r), max(r)) for way, r in rates.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=0.5, help="of each repetition")
    parser.add_argument("--json", type=Path, help="also write the table to this file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokens.bin"
        np.random.default_rng(0).integers(0, 4096, NUM_TOKENS).astype("<u2").tofile(path)
        tokens = np.memmap(path, dtype="<u2", mode="r")
        rows = measure(tokens, arguments.repetitions, arguments.seconds)
    versions = {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "grain": grain.__version__,
        "cpus": os.cpu_count(),
    }
    print(f"B {BATCH_SIZE}, T {CONTEXT_LENGTH}, {NUM_TOKENS:,} tokens;", versions)
    print(f"{'million tokens/s':26}{'median':>10}{'slowest':>10}{'fastest':>10}")
    for way, *rates in rows:
        print(f"{way:26}" + "".join(f"{rate / 1e6:10.1f}" for rate in rates))
    if arguments.json:
        arguments.json.write_text(
            json.dumps({"versions": versions, "rows": [row._asdict() for row in rows]}, indent=1)
        )


if __name__ == "__main__":
    main()
