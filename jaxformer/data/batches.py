"""Batches of a language run: windows of the token file as (inputs, targets, mask).

Training draws windows without replacement in random order, epoch by epoch. The batch of a step is a
pure function of (tokens, seed, step): a resumed run needs only its step, and the order does not
depend on the number of processes. Evaluation reads the text once, from the first token to the last.

A window holds T + 1 tokens, w[0:T] as inputs and w[1:T+1] as targets. Adjacent windows share one
token, so every token except the first of the text is a target.
"""

import functools
from collections.abc import Iterator
from typing import Protocol, TypeVar

import grain
import numpy as np
from grain.sources import RandomAccessDataSource
from jaxtyping import Int

from jaxformer.batch import Batch
from jaxformer.data.rng import shuffled
from jaxformer.errors import UserError

BatchT = TypeVar("BatchT")


class Tokens(Protocol):
    """Token ids that are read in slices: an array, or several files of them (shards.py)."""

    def __len__(self) -> int: ...

    def __getitem__(self, where: slice, /) -> np.ndarray: ...


PREFETCHED = 16  # batches read ahead; a few hide the reading time, more only use memory
NUM_STEPS = 2**40  # the length reported to grain; the batches never end


class TrainingBatches:
    """A grain source whose item i is the whole batch of step i.

    Epoch e cuts W adjacent windows from a random offset and takes them in random order; offset and
    order follow from (seed, e). Batch i takes the windows i B to (i + 1) B - 1 of the endless
    sequence of epochs. W is the largest number that leaves at least T offsets, so that every
    alignment of windows and text occurs (W is 1 for a text of fewer than 2 T + 1 tokens).

    Raises UserError if the text is shorter than one window.
    """

    def __init__(self, tokens: Tokens, batch_size: int, context_length: int, seed: int):
        if len(tokens) <= context_length:
            raise UserError(
                f"the text has {len(tokens):,} tokens, too few for model.context-length "
                f"{context_length}: give a longer text or choose a shorter context"
            )
        self.batch_size = batch_size
        self.context_length = context_length
        self.seed = seed
        self.windows_per_epoch = max(1, (len(tokens) - context_length) // context_length)
        self._tokens = tokens
        self._num_offsets = len(tokens) - self.windows_per_epoch * context_length
        self._starts = functools.lru_cache(maxsize=2)(self.epoch_starts)  # a batch may span two

    def __len__(self) -> int:
        return NUM_STEPS

    def __getitem__(self, step: int) -> Batch:
        first = step * self.batch_size
        epochs, places = np.divmod(
            np.arange(first, first + self.batch_size), self.windows_per_epoch
        )
        starts = [self._starts(int(epoch))[places[epochs == epoch]] for epoch in np.unique(epochs)]
        windows = _windows(self._tokens, np.concatenate(starts), self.context_length + 1)
        inputs, targets = windows[:, :-1].astype(np.int32), windows[:, 1:].astype(np.int32)
        return Batch(inputs, targets, np.ones(targets.shape, dtype=bool))

    def epoch_starts(self, epoch: int) -> Int[np.ndarray, " W"]:
        """Positions of the first tokens of an epoch's windows, in training order."""
        philox = np.random.Philox(np.random.SeedSequence((self.seed, epoch)))
        offset = philox.random_raw() % self._num_offsets
        return offset + self.context_length * shuffled(philox, self.windows_per_epoch)


def _windows(tokens: Tokens, starts: Int[np.ndarray, " B"], length: int) -> np.ndarray:
    """(B, length): the tokens from each start on."""
    if isinstance(tokens, np.ndarray):
        return np.lib.stride_tricks.sliding_window_view(tokens, length)[starts]
    return np.stack([tokens[start : start + length] for start in starts.tolist()])


def training_iterator(
    source: RandomAccessDataSource[BatchT], start_step: int = 0
) -> grain.DatasetIterator[BatchT]:
    """An endless iterator over the batches from `start_step` on; one thread reads ahead.

    `close()` stops the thread (use `contextlib.closing`).
    """
    batches = grain.MapDataset.source(source).to_iter_dataset(
        grain.ReadOptions(num_threads=1, prefetch_buffer_size=PREFETCHED)
    )
    iterator = iter(batches)
    iterator.set_state({"next_index": start_step})
    return iterator


def evaluation_batches(tokens: Tokens, batch_size: int, context_length: int) -> Iterator[Batch]:
    """Batches in which every token except the first is a target exactly once, in order.

    All batches have the shape (B, T): the last window and the last batch are padded with zeros,
    where the mask is False. Raises UserError if there is no target.
    """
    if len(tokens) < 2:
        raise UserError(
            f"the text to evaluate on has {len(tokens)} tokens, too few: give a longer text, or in "
            "training a larger --data.val-fraction"
        )
    batch_tokens = batch_size * context_length
    return (
        _evaluation_batch(tokens[start : start + batch_tokens + 1], batch_size, context_length)
        for start in range(0, len(tokens) - 1, batch_tokens)
    )


def _evaluation_batch(tokens: np.ndarray, batch_size: int, context_length: int) -> Batch:
    num_targets = len(tokens) - 1
    shape = (batch_size, context_length)
    inputs, targets = np.zeros((2, *shape), dtype=np.int32)
    inputs.flat[:num_targets] = tokens[:-1]
    targets.flat[:num_targets] = tokens[1:]
    mask = np.arange(inputs.size).reshape(shape) < num_targets
    return Batch(inputs, targets, mask)
