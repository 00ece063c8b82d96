"""Stop strings are found across pieces, independently of how the text is cut."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jaxformer.decoding.stop_strings import StopFilter
from jaxformer.errors import UserError


def filtered(pieces, stops):
    stop = StopFilter(stops)
    return "".join(stop.feed(piece) for piece in pieces) + stop.flush(), stop.stopped


def reference(text, stops):
    """Read the text a character at a time; cut the longest stop string that ends there."""
    for end in range(len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            return text[: end - max(map(len, ending))], True
    return text, False


@settings(deadline=None, max_examples=300)
@given(
    pieces=st.lists(st.text("ab", max_size=4), max_size=6),
    stops=st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
)
@example(pieces=["abc"], stops=["abc", "b"])
def test_the_text_is_cut_at_the_first_stop_string_however_it_arrives(pieces, stops):
    assert filtered(pieces, stops) == reference("".join(pieces), stops)


def test_only_a_tail_that_may_begin_a_stop_string_is_held_back():
    stop = StopFilter(["END"])
    assert stop.feed("some E") == "some "
    assert stop.feed("N") == ""
    assert stop.feed("T") == "ENT"
    assert stop.feed("EN") == ""
    assert stop.feed("D and more") == ""
    assert stop.stopped
    assert stop.feed("more") == stop.flush() == ""


def test_an_empty_stop_string_is_refused():
    with pytest.raises(UserError, match="stop string is empty"):
        StopFilter(["a", ""])
