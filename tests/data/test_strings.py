"""Random strings: all different, of all lengths, held out from training."""

from collections import Counter

import pytest

from jaxformer.config import CopyConfig
from jaxformer.data.rng import even_shares
from jaxformer.data.strings import string_pairs
from jaxformer.errors import UserError

SMALL = {"num_symbols": 5, "max_length": 7, "num_pairs": 900, "num_val_pairs": 90}


def test_strings_are_different_across_both_splits():
    texts = string_pairs(CopyConfig(**SMALL))
    sources = [pair.source for pair in texts.train + texts.val]
    assert len(set(sources)) == len(sources) == 990
    assert (len(texts.train), len(texts.val)) == (900, 90)
    assert set("".join(sources)) == set("abcde")
    assert all(pair.target == pair.source for pair in texts.train + texts.val)


def test_lengths_are_balanced_and_short_strings_are_training_data():
    texts = string_pairs(CopyConfig(**SMALL))
    train = Counter(len(pair.source) for pair in texts.train)
    val = Counter(len(pair.source) for pair in texts.val)
    assert [train[length] for length in range(1, 8)] == [5, 23, 113, 189, 190, 190, 190]
    assert [val[length] for length in range(1, 8)] == [0, 2, 12, 19, 19, 19, 19]
    assert len({pair.source[:3] for pair in texts.val}) > 30  # in random order


def test_copy_and_reverse_have_the_same_strings():
    copied, reversed_ = (string_pairs(CopyConfig(reverse=r, **SMALL)) for r in (False, True))
    assert [pair.source for pair in copied.train] == [pair.source for pair in reversed_.train]
    assert all(pair.target == pair.source[::-1] for pair in reversed_.train + reversed_.val)
    assert copied.sha256() != reversed_.sha256()


def test_the_strings_never_change():
    texts = string_pairs(CopyConfig(num_symbols=3, max_length=4, num_pairs=4, num_val_pairs=2))
    assert [pair.source for pair in texts.train + texts.val] == [
        "cbc",
        "bcca",
        "b",
        "aa",
        "cca",
        "bcab",
    ]


@pytest.mark.parametrize("changes", [{"num_pairs": 100_000}, {"num_val_pairs": 10_000}])
def test_more_strings_than_exist_are_refused(changes):
    given = CopyConfig(**{**SMALL, **changes})
    flags = rf"data\.num-pairs {given.num_pairs} .*data\.num-val-pairs {given.num_val_pairs} "
    with pytest.raises(UserError, match=flags) as caught:
        string_pairs(given)
    assert "\n" not in str(caught.value)


def test_all_existing_strings_can_be_used():
    texts = string_pairs(CopyConfig(num_symbols=3, max_length=3, num_pairs=37, num_val_pairs=2))
    assert len(set(texts.train + texts.val)) == 39 == 3 + 9 + 27


def test_shares_are_as_even_as_the_capacities_allow():
    assert even_shares([10, 90, 900, 9000], 2000) == [10, 90, 900, 1000]
    assert even_shares([5, 100, 7], 30) == [5, 18, 7]
    assert even_shares([1, 2], 10) == [1, 2]
    assert even_shares([9, 9, 9], 10) == [3, 3, 4]
    assert even_shares([0, 4], 3) == [0, 3]
