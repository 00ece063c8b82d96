"""Every pair is kept, or counted under exactly one reason."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxformer.data.clean import Cleaning, clean_texts, length_faults
from jaxformer.data.pairs import Pair

texts = st.sampled_from(["", "a", "b", "c"])
some_pairs = st.lists(st.builds(Pair, texts, texts), max_size=30)

few = settings(deadline=None, max_examples=100)


@given(pairs=some_pairs, held_out=some_pairs)
@few
def test_a_pair_is_kept_at_its_first_occurrence_or_counted_once(pairs, held_out):
    kept, cleaning = clean_texts(pairs, held_out)
    wanted = {pair for pair in pairs if all(pair) and pair not in held_out}
    assert kept == sorted(wanted, key=pairs.index)
    assert cleaning.empty == sum(not all(pair) for pair in pairs)
    assert cleaning.held_out == sum(all(pair) and pair in held_out for pair in pairs)
    assert cleaning.num_pairs == len(pairs) == len(kept) + cleaning.num_dropped


def test_equal_sources_with_other_targets_are_kept():
    pairs = [Pair("a", "b"), Pair("a", "c"), Pair("b", "a"), Pair("a", "b")]
    assert clean_texts(pairs) == (pairs[:3], Cleaning(4, repeated=1))


@given(
    lengths=st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), max_size=30),
    max_tokens=st.integers(1, 30),
    max_ratio=st.floats(1, 5),
)
@few
def test_lengths_are_bounded_and_balanced(lengths, max_tokens, max_ratio):
    sources, targets = np.array(lengths, dtype=np.int64).reshape(-1, 2).T
    too_long, unequal = length_faults(sources, targets, max_tokens, max_ratio)
    assert too_long.tolist() == [max(pair) > max_tokens for pair in lengths]
    assert unequal.tolist() == [
        max(pair) <= max_tokens and max(pair) / min(pair) > max_ratio for pair in lengths
    ]


def test_a_side_without_tokens_is_unequal_to_any_other():
    too_long, unequal = length_faults(np.array([0, 3]), np.array([1, 3]), 10, 3.0)
    assert (too_long.tolist(), unequal.tolist()) == ([False, False], [True, False])


def test_the_line_names_only_the_reasons_that_occurred():
    assert str(Cleaning(1200)) == "0 of 1,200 pairs dropped"
    line = str(Cleaning(1200, empty=1, repeated=2, held_out=3, too_long=4, unequal=5))
    assert line == (
        "15 of 1,200 pairs dropped "
        "(1 empty, 3 also in validation, 2 repeated, 4 too long, 5 too unequal)"
    )
    assert "empty" not in str(Cleaning(5, repeated=2))
