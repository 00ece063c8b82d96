"""Batches of pairs, bucketed by length: little padding, and few shapes to compile.

The length of a pair is that of its longer side in tokens, the start token of the target included. A
pair belongs to the shortest bucket that can hold it. A batch comes from one bucket, both sides
padded to the bucket's length, with as many rows as the token budget allows ("approximate sequence
length" batches, Vaswani et al. 2017, section 5.1). Pairs that do not fill a batch of their bucket
move to the next longer one, so only the last batch of the longest bucket can have empty rows.

The batch of a step is a pure function of (pairs, batch tokens, row multiple, seed, step): a resumed
run needs only its step, and the number of processes or devices matters only through the row
multiple.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from jaxformer.batch import PairBatch, SpecialTokens
from jaxformer.data.batches import NUM_STEPS
from jaxformer.data.pairs import TokenPairs
from jaxformer.data.rng import shuffled
from jaxformer.errors import UserError

SHORTEST = 8  # length of the first bucket
MULTIPLE = 4  # every bucket length except the longest is a multiple of it


class Rows(NamedTuple):
    """The pairs of a batch."""

    shape: tuple[int, int]
    """(B, L) of the batch; the rows after the last of `numbers` are empty."""
    numbers: Int[np.ndarray, " rows"]
    """Indices of the pairs."""


class PairBatches:
    """A grain source whose item i is the whole batch of step i.

    Every epoch takes each pair once. The order within the buckets and the order of the batches
    follow from (seed, epoch). `batch_tokens` bounds the tokens of a side, padding included. The
    number of rows is a multiple of `row_multiple` (batch shards times accumulation slices), and at
    least that, even beyond the bound. `batch_size` gives every batch that number of rows instead.

    Raises UserError if there are no pairs.
    """

    def __init__(
        self,
        pairs: TokenPairs,
        specials: SpecialTokens,
        batch_tokens: int,
        row_multiple: int = 1,
        seed: int = 0,
        batch_size: int | None = None,
    ):
        self._pairs, self._specials, self._seed = pairs, specials, seed
        self._buckets, shapes = _bucketed(pairs, batch_tokens, row_multiple, batch_size)
        self._shapes = shapes
        plan = _laid_out(self._buckets, shapes)
        self.batches_per_epoch = len(plan)
        self.shapes = tuple(sorted({rows.shape for rows in plan}, key=lambda shape: shape[1]))
        """Every shape (B, L) that occurs; the train step is compiled once for each."""
        places = 2 * sum(B * L for (B, L), _ in plan)
        tokens = pairs.sources.lengths.sum() + (pairs.targets.lengths + 1).sum()
        self.padding_share = float(1 - tokens / places)
        """The fraction of the positions of an epoch, both sides together, that are padding."""
        self._epoch = functools.lru_cache(maxsize=2)(self._laid_out_epoch)

    def __len__(self) -> int:
        return NUM_STEPS

    def __getitem__(self, step: int) -> PairBatch:
        epoch, place = divmod(step, self.batches_per_epoch)
        return pair_batch(self._pairs, self._epoch(epoch)[place], self._specials)

    def _laid_out_epoch(self, epoch: int) -> list[Rows]:
        """The batches of an epoch, in training order."""
        philox = np.random.Philox(np.random.SeedSequence((self._seed, epoch)))
        buckets = [bucket[shuffled(philox, len(bucket))] for bucket in self._buckets]
        plan = _laid_out(buckets, self._shapes)
        return [plan[i] for i in shuffled(philox, len(plan))]


def evaluation_rows(
    pairs: TokenPairs, batch_tokens: int, row_multiple: int = 1, batch_size: int | None = None
) -> list[Rows]:
    """Batches that hold every pair exactly once, from short to long, shaped as in training.

    Raises UserError if there are no pairs.
    """
    return _laid_out(*_bucketed(pairs, batch_tokens, row_multiple, batch_size))


def evaluation_pair_batches(
    pairs: TokenPairs,
    specials: SpecialTokens,
    batch_tokens: int,
    row_multiple: int = 1,
    batch_size: int | None = None,
) -> Iterator[PairBatch]:
    """The batches of `evaluation_rows`."""
    plan = evaluation_rows(pairs, batch_tokens, row_multiple, batch_size)
    return (pair_batch(pairs, rows, specials) for rows in plan)


def pair_batch(pairs: TokenPairs, rows: Rows, specials: SpecialTokens) -> PairBatch:
    """The batch of `rows`: start token + target as inputs, target + end token as targets."""
    (B, L), chosen = rows.shape, pairs.take(rows.numbers)
    num_rows = len(chosen)
    source_lengths, target_lengths = np.zeros((2, B, 1), dtype=np.int64)
    source_lengths[:num_rows, 0] = chosen.sources.lengths
    target_lengths[:num_rows, 0] = chosen.targets.lengths + 1
    places = np.arange(L)
    target = chosen.targets.padded((B, L), specials.padding)
    inputs = np.roll(target, 1, axis=1)  # its last position was padding, for the end token
    inputs[:, 0] = specials.padding
    inputs[:num_rows, 0] = specials.start
    target[np.arange(num_rows), chosen.targets.lengths] = specials.end
    return PairBatch(
        source=chosen.sources.padded((B, L), specials.padding),
        source_valid=places < source_lengths,
        inputs=inputs,
        targets=target,
        mask=places < target_lengths,
    )


def bucket_lengths(longest: int) -> list[int]:
    """Lengths that grow by a third, in multiples of 4, up to `longest`.

    8, 12, 16, 24, 32, 44, 60, 80, 108, ...: the last is `longest` itself, not rounded up, so that
    pairs which fit the context of a model make batches that fit.
    """
    lengths, length = [], SHORTEST
    while length < longest:
        lengths.append(length)
        length = MULTIPLE * -(-4 * length // (3 * MULTIPLE))
    return [*lengths, longest]


def batch_shapes(
    longest: int, batch_tokens: int, row_multiple: int, batch_size: int | None = None
) -> list[tuple[int, int]]:
    """The shape (B, L) of the batches of each bucket, given the length of the longest pair."""
    lengths = bucket_lengths(longest)
    allowed = [batch_size or batch_tokens // length for length in lengths]
    rows = [number // row_multiple * row_multiple for number in allowed]
    return [(max(B, row_multiple), L) for B, L in zip(rows, lengths, strict=True)]


def _bucketed(
    pairs: TokenPairs, batch_tokens: int, row_multiple: int, batch_size: int | None
) -> tuple[list[Int[np.ndarray, " members"]], list[tuple[int, int]]]:
    """For each bucket the indices of its pairs and the shape of its batches."""
    if not len(pairs):
        raise UserError("the data holds no pairs to make batches of: give more text")
    shapes = batch_shapes(int(pairs.lengths.max()), batch_tokens, row_multiple, batch_size)
    bucket_of_pair = np.searchsorted([length for _, length in shapes], pairs.lengths)
    return [np.flatnonzero(bucket_of_pair == i) for i in range(len(shapes))], shapes


def _laid_out(
    buckets: Sequence[Int[np.ndarray, " members"]], shapes: Sequence[tuple[int, int]]
) -> list[Rows]:
    """Cut each bucket into batches; its remainder joins the next bucket, in front."""
    plan: list[Rows] = []
    waiting = np.empty(0, dtype=np.int64)
    for bucket, shape in zip(buckets, shapes, strict=True):
        waiting = np.concatenate([waiting, bucket])
        while len(waiting) >= shape[0]:
            plan.append(Rows(shape, waiting[: shape[0]]))
            waiting = waiting[shape[0] :]
    if len(waiting):
        plan.append(Rows(shapes[-1], waiting))
    return plan
