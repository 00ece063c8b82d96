"""Concatenated sequences are restored one by one, in any selection and order, and from disk."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxformer.data.pairs import Sequences, TokenPairs

ids = st.lists(st.integers(0, 2**16 - 1), max_size=6)

few = settings(deadline=None, max_examples=40)


def sequences(lists, dtype="<u2"):
    return Sequences.of((np.array(one, dtype=np.int32) for one in lists), dtype)


@given(lists=st.lists(ids, max_size=9), data=st.data())
@few
def test_sequences_are_lists_of_lists(lists, data):
    laid = sequences(lists)
    assert len(laid) == len(lists)
    assert [one.tolist() for one in laid] == lists
    assert laid.lengths.tolist() == [len(one) for one in lists]
    assert laid.tokens.dtype == np.dtype("<u2")
    some = data.draw(st.lists(st.integers(0, len(lists) - 1), max_size=9) if lists else st.just([]))
    taken = laid.take(np.array(some, dtype=np.int64))
    assert [one.tolist() for one in taken] == [lists[i] for i in some]


@given(lists=st.lists(ids, min_size=1, max_size=9), spare=st.integers(0, 3))
@few
def test_padded_rows_end_with_the_fill(lists, spare):
    shape = len(lists) + spare, max(map(len, lists)) + spare
    padded = sequences(lists).padded(shape, fill=70_000)
    assert padded.dtype == np.int32
    assert padded.tolist() == [
        one + [70_000] * (shape[1] - len(one)) for one in lists + [[]] * spare
    ]


@pytest.mark.parametrize("lists", [[], [[]], [[1, 2], [], [3]]])
def test_loaded_sequences_equal_the_saved_ones(lists, tmp_path):
    sequences(lists, "<u4").save(tmp_path / "train.source")
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"train.source.npy", "train.source.offsets.npy"}
    loaded = Sequences.load(tmp_path / "train.source")
    assert [one.tolist() for one in loaded] == lists
    assert loaded.tokens.dtype == np.dtype("<u4")
    assert not loaded.tokens.flags.writeable


def test_the_length_of_a_pair_includes_the_start_token():
    pairs = TokenPairs(sequences([[1, 2, 3], [4], []]), sequences([[5], [6, 7, 8], []]))
    assert len(pairs) == 3
    assert pairs.lengths.tolist() == [3, 4, 1]
    taken = pairs.take(np.array([1]))
    assert (taken.sources[0].tolist(), taken.targets[0].tolist()) == ([4], [6, 7, 8])
    with pytest.raises(IndexError):
        pairs.sources[-1]
