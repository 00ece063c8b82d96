"""A stream decodes like the whole; a character is emitted when its last byte arrives."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxformer.data.stream import StreamDecoder
from jaxformer.data.tokenizer import ByteTokenizer
from tests.tokenizers_of_all_kinds import ALL_KINDS


def stream(tokenizer, ids):
    decoder = StreamDecoder(tokenizer)
    return [decoder.feed(i) for i in ids] + [decoder.flush()]


def test_unused_ids_have_no_text():
    tokenizer = ALL_KINDS["gappy"]
    assert tokenizer.vocab_size == 8 * 255 + 1
    (letter,) = tokenizer.encode("a")
    assert tokenizer.decode([letter, letter + 1, letter]) == "aa"


@given(data=st.data())
@settings(deadline=None, max_examples=200)
def test_a_stream_with_many_unused_ids_decodes_like_the_whole(data):
    tokenizer = ALL_KINDS["gappy"]
    units = st.sampled_from([*tokenizer.encode("😀").tolist(), *[1] * 12])
    ids = data.draw(st.lists(units, min_size=30, max_size=90))
    assert "".join(stream(tokenizer, ids)) == tokenizer.decode(ids)


@pytest.mark.parametrize("kind", ALL_KINDS)
@given(data=st.data())
@settings(deadline=None, max_examples=150)
def test_a_stream_of_any_ids_decodes_like_the_whole(kind, data):
    tokenizer = ALL_KINDS[kind]
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=120))
    assert "".join(stream(tokenizer, ids)) == tokenizer.decode(ids)


@pytest.mark.parametrize("kind", ["bytes", "bpe", "fallback"])
@given(text=st.text(alphabet="a漢😀", max_size=40), cut=st.integers(0, 4), stray=st.integers(0, 3))
@settings(deadline=None, max_examples=100)
def test_a_stream_may_begin_and_end_inside_a_character(kind, text, cut, stray):
    tokenizer = ALL_KINDS[kind]
    ids = tokenizer.encode("😀" * 12 + text)[stray:]
    ids = ids[: len(ids) - cut]
    assert "".join(stream(tokenizer, ids)) == tokenizer.decode(ids)


def test_a_stream_emits_a_character_when_its_last_byte_arrives():
    assert stream(ByteTokenizer(), "a€b".encode()) == ["a", "", "", "€", "b", ""]
    assert stream(ByteTokenizer(), b"a\xe2\x82") == ["a", "", "", "\ufffd"]


def test_flush_resets_the_decoder():
    decoder = StreamDecoder(ByteTokenizer())
    assert decoder.feed(0xE2) + decoder.flush() + decoder.feed(0x61) == "\ufffda"


@pytest.mark.parametrize("ids", [[0x61], list("😀".encode()), [0x80], [0xF0]])
def test_a_long_stream_decodes_short_tails(ids, monkeypatch):
    decoded = []
    whole = ByteTokenizer.decode

    def decode(self, window):
        decoded.append(len(window))
        return whole(self, window)

    monkeypatch.setattr(ByteTokenizer, "decode", decode)
    stream(ByteTokenizer(), ids * 500)
    assert max(decoded) <= 2 * StreamDecoder.KEEP + 1
