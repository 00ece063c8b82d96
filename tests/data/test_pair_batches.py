"""Batches of pairs: every pair exactly once, within the token budget, with correct masks."""

import contextlib
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxformer.batch import PairBatch, SpecialTokens
from jaxformer.data.batches import training_iterator
from jaxformer.data.pair_batches import (
    PairBatches,
    bucket_lengths,
    evaluation_pair_batches,
    evaluation_rows,
)
from jaxformer.data.pairs import Sequences, TokenPairs
from jaxformer.errors import UserError

SPECIALS = SpecialTokens(padding=50_000, start=50_001, end=50_002)

lengths = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), min_size=1, max_size=80)
sizes = {
    "lengths": lengths,
    "batch_tokens": st.integers(1, 300),
    "row_multiple": st.integers(1, 6),
    "seed": st.integers(0, 2**32 - 1),
}

few = settings(deadline=None, max_examples=60)


def pairs_of(lengths):
    """Each token is 100 times its pair plus its position, which is doubled in the target."""
    sources = (100 * i + np.arange(m) for i, (m, _) in enumerate(lengths))
    targets = (100 * i + 2 * np.arange(n) for i, (_, n) in enumerate(lengths))
    return TokenPairs(Sequences.of(sources, "<u2"), Sequences.of(targets, "<u2"))


def epoch_of(batches, epoch=0):
    first = epoch * batches.batches_per_epoch
    return [batches[step] for step in range(first, first + batches.batches_per_epoch)]


def contents(batches):
    """(source, inputs, targets) of every row with tokens, without padding."""
    return [
        (
            source[source_valid].tolist(),
            inputs[mask].tolist(),
            targets[mask].tolist(),
        )
        for batch in batches
        for source, source_valid, inputs, targets, mask in zip(*batch, strict=True)
        if mask.any()
    ]


def expected(lengths):
    """The `contents` of the pairs of these lengths."""
    rows = []
    for i, (m, n) in enumerate(lengths):
        target = [100 * i + 2 * k for k in range(n)]
        source = [100 * i + k for k in range(m)]
        rows.append((source, [SPECIALS.start, *target], [*target, SPECIALS.end]))
    return rows


def assert_equal(batch, other):
    for array, same in zip(batch, other, strict=True):
        np.testing.assert_array_equal(array, same, strict=True)


@given(**sizes)
@few
def test_an_epoch_takes_every_whole_pair_once(lengths, batch_tokens, row_multiple, seed):
    batches = PairBatches(pairs_of(lengths), SPECIALS, batch_tokens, row_multiple, seed)
    for epoch in range(2):
        assert sorted(contents(epoch_of(batches, epoch))) == sorted(expected(lengths))


@given(**sizes)
@few
def test_an_evaluation_takes_every_pair_once_from_short_to_long(
    lengths, batch_tokens, row_multiple, seed
):
    del seed
    pairs = pairs_of(lengths)
    batches = list(evaluation_pair_batches(pairs, SPECIALS, batch_tokens, row_multiple))
    assert sorted(contents(batches)) == sorted(expected(lengths))
    numbers = np.concatenate([rows.numbers for rows in evaluation_rows(pairs, batch_tokens)])
    buckets = np.searchsorted(bucket_lengths(int(pairs.lengths.max())), pairs.lengths)
    assert numbers.tolist() == sorted(range(len(lengths)), key=lambda i: (buckets[i], i))
    training = PairBatches(pairs, SPECIALS, batch_tokens, row_multiple)
    assert {batch.inputs.shape for batch in batches} == set(training.shapes)


@given(**sizes)
@few
def test_shapes_types_masks_and_budget(lengths, batch_tokens, row_multiple, seed):
    batches = PairBatches(pairs_of(lengths), SPECIALS, batch_tokens, row_multiple, seed)
    epoch = epoch_of(batches)
    assert {batch.inputs.shape for batch in epoch} == set(batches.shapes)
    assert len(set(batches.shapes)) == len(batches.shapes) <= len(bucket_lengths(41))
    empty_rows = 0
    for batch in epoch:
        assert isinstance(batch, PairBatch)
        B, L = batch.inputs.shape
        assert {array.shape for array in batch} == {(B, L)}
        assert [array.dtype for array in batch] == [np.int32, bool, np.int32, np.int32, bool]
        assert B % row_multiple == 0
        assert row_multiple == B or batch_tokens >= B * L
        assert (B + row_multiple) * L > batch_tokens  # as many rows as the budget allows
        for array, valid in (
            (batch.source, batch.source_valid),
            (batch.inputs, batch.mask),
            (batch.targets, batch.mask),
        ):
            assert (array[~valid] == SPECIALS.padding).all()
            assert not (array[valid] == SPECIALS.padding).any()
            assert (valid[:, :-1] >= valid[:, 1:]).all()  # padding comes after the tokens
        following = batch.mask[:, 1:]
        np.testing.assert_array_equal(
            batch.inputs[:, 1:][following], batch.targets[:, :-1][following]
        )
        is_empty = ~batch.mask.any(axis=1)
        assert not batch.source_valid[is_empty].any()
        empty_rows += is_empty.any()
    assert empty_rows <= 1  # only the last batch of the longest bucket is not full


@given(**sizes)
@few
def test_the_padding_share_is_that_of_any_epoch(lengths, batch_tokens, row_multiple, seed):
    batches = PairBatches(pairs_of(lengths), SPECIALS, batch_tokens, row_multiple, seed)
    for epoch in range(2):
        valid = [m for b in epoch_of(batches, epoch) for m in (b.source_valid, b.mask)]
        tokens, places = sum(m.sum() for m in valid), sum(m.size for m in valid)
        assert batches.padding_share == pytest.approx(1 - tokens / places, abs=1e-12)


@given(**sizes, step=st.integers(0, 10**6))
@few
def test_a_batch_depends_only_on_seed_and_step(lengths, batch_tokens, row_multiple, seed, step):
    pairs = pairs_of(lengths)
    walked = PairBatches(pairs, SPECIALS, batch_tokens, row_multiple, seed)
    for earlier in (0, 1, step + 1, step // 2):
        walked[earlier]
    assert_equal(walked[step], PairBatches(pairs, SPECIALS, batch_tokens, row_multiple, seed)[step])


def test_orders_differ_between_epochs_and_seeds():
    pairs = pairs_of([(i % 30, (i * 7) % 30) for i in range(300)])
    batches = PairBatches(pairs, SPECIALS, 200)
    orders = [[row[0] for row in contents(epoch_of(batches, epoch))] for epoch in range(5)]
    orders.append([row[0] for row in contents(epoch_of(PairBatches(pairs, SPECIALS, 200, 1, 1)))])
    assert all(one != other for one, other in itertools.combinations(orders, 2))
    shapes = [[batch.inputs.shape for batch in epoch_of(batches, epoch)] for epoch in range(5)]
    assert all(one != other for one, other in itertools.combinations(shapes, 2))


def test_the_order_never_changes():
    """A different order would break the resumption of every run, whatever the version of numpy."""
    batches = PairBatches(pairs_of([(3, 2), (9, 5), (1, 1), (20, 3), (2, 9), (7, 7)]), SPECIALS, 24)
    orders = [
        [[inputs[1] // 100 for _, inputs, _ in contents([batch])] for batch in epoch_of(batches, e)]
        for e in range(3)
    ]
    assert orders == [
        [[3], [1, 4], [0, 2, 5]],
        [[1, 4], [3], [5, 2, 0]],
        [[4, 1], [5, 0, 2], [3]],
    ]


def test_buckets_grow_by_a_third_and_end_at_the_longest():
    assert bucket_lengths(81) == [8, 12, 16, 24, 32, 44, 60, 80, 81]
    assert bucket_lengths(8) == [8]
    assert bucket_lengths(1) == [1]


def test_buckets_remove_most_of_the_padding():
    rng = np.random.default_rng(0)
    lengths = rng.integers(5, 40, 3000)
    pairs = pairs_of(list(zip(lengths, lengths + rng.integers(-2, 3, 3000), strict=True))[:500])
    unsorted = 1 - (lengths[:500].mean() + 0.5) / pairs.lengths.max()
    assert PairBatches(pairs, SPECIALS, 512).padding_share < 0.22 < 0.4 < unsorted


def test_a_resumed_iterator_equals_a_whole_one():
    pairs = pairs_of([(i % 9, i % 13) for i in range(60)])
    source = PairBatches(pairs, SPECIALS, 64, seed=3)
    with (
        contextlib.closing(training_iterator(source)) as whole,
        contextlib.closing(training_iterator(PairBatches(pairs, SPECIALS, 64, seed=3), 17)) as late,
    ):
        for step, batch in enumerate(itertools.islice(whole, 17, 30), 17):
            assert_equal(batch, next(late))
            assert_equal(batch, source[step])


def test_no_pairs_are_refused():
    with pytest.raises(UserError, match="no pairs"):
        PairBatches(pairs_of([]), SPECIALS, 64)
    with pytest.raises(UserError, match="no pairs"):
        evaluation_pair_batches(pairs_of([]), SPECIALS, 64)


@given(lengths=lengths, batch_size=st.integers(1, 7), seed=sizes["seed"])
@few
def test_a_batch_size_is_the_number_of_rows_of_every_batch(lengths, batch_size, seed):
    pairs = pairs_of(lengths)
    batches = epoch_of(PairBatches(pairs, SPECIALS, 64, seed=seed, batch_size=batch_size))
    assert {batch.mask.shape[0] for batch in batches} == {batch_size}
    assert sorted(contents(batches)) == sorted(expected(lengths))
    evaluated = evaluation_pair_batches(pairs, SPECIALS, 64, batch_size=batch_size)
    assert {batch.mask.shape[0] for batch in evaluated} == {batch_size}
