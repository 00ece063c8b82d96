"""Tokenizers round-trip every text they can encode, and refuse the rest in one line."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jaxformer.data.tokenizer import (
    BPETokenizer,
    ByteTokenizer,
    CharTokenizer,
    load_tokenizer,
    make_tokenizer,
    save_tokenizer,
)
from jaxformer.data.tokenizer import bpe as module
from jaxformer.errors import UserError
from tests.tokenizers_of_all_kinds import (
    ALL_KINDS,
    ALPHABET,
    BPE,
    KINDS,
    SENTENCES,
    TEXTS,
    fallback_tokenizer,
)

SPACES = BPETokenizer.train(["a \n\n \n  b\n \n'a\n\n"] * 9, 300)

any_text = st.text(max_size=60) | st.text(alphabet=ALPHABET, max_size=60)
few = settings(deadline=None, max_examples=60)


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
@given(text=any_text)
@few
def test_any_text_round_trips(kind, text):
    ids = KINDS[kind].encode(text)
    assert ids.dtype == np.int32
    assert ids.ndim == 1
    assert KINDS[kind].decode(ids) == text


@given(text=st.text(alphabet=ALPHABET))
@few
def test_text_of_known_characters_round_trips(text):
    ids = KINDS["characters"].encode(text)
    assert ids.dtype == np.int32
    assert ids.tolist() == [sorted(set(ALPHABET)).index(character) for character in text]
    assert KINDS["characters"].decode(ids) == text


def test_bytes_are_utf8():
    assert ByteTokenizer().encode("aé").tolist() == [0x61, 0xC3, 0xA9]
    assert ByteTokenizer().decode([0x61, 0xC3]) == "a\ufffd"


def test_an_unknown_character_is_named_with_its_position():
    with pytest.raises(UserError, match=r"'\\xe9' \(LATIN SMALL LETTER E WITH ACUTE\).* 2\b"):
        CharTokenizer.from_texts(["abc"]).encode("abé")


@pytest.mark.parametrize("kind", KINDS)
def test_a_lone_surrogate_is_refused(kind):
    with pytest.raises(UserError, match=r"'\\ud800' \(U\+D800\).* 1\b"):
        KINDS[kind].encode("a\ud800")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("offset", [-1, 0])
def test_ids_outside_the_vocabulary_are_refused(kind, offset):
    tokenizer = KINDS[kind]
    outside = -1 if offset else tokenizer.vocab_size
    with pytest.raises(UserError, match=f"token {outside} "):
        tokenizer.decode([0, outside])


@pytest.mark.parametrize("kind", KINDS)
def test_the_empty_text_round_trips(kind):
    assert KINDS[kind].encode("").size == 0
    assert KINDS[kind].decode([]) == ""


def test_bpe_merges_only_frequent_pairs():
    assert 256 < BPE.vocab_size <= 300
    assert len(BPE.encode("the cat")) < len("the cat")
    assert BPETokenizer.train(["xyz"], 300).vocab_size == 256  # nothing occurs twice
    with pytest.raises(UserError, match="256 or more"):
        BPETokenizer.train(TEXTS, 255)


@given(text=any_text)
@example(text=" a")
@example(text="  ")
@few
def test_any_sentence_round_trips(text):
    assert SENTENCES.decode(SENTENCES.encode(text)) == text


def test_the_first_word_of_a_sentence_has_the_ids_of_a_later_word():
    whole = SENTENCES.encode("the cat").tolist()
    assert whole[-len(SENTENCES.encode("cat")) :] == SENTENCES.encode("cat").tolist()
    assert len(whole) < len("the cat")
    assert BPE.encode("the cat").tolist()[-1:] != BPE.encode("cat").tolist()[-1:]
    with pytest.raises(UserError, match="256 or more"):
        BPETokenizer.train_on_sentences(TEXTS, 255)


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_texts_are_encoded_together_as_alone(kind, monkeypatch):
    monkeypatch.setattr(module, "TEXTS_AT_ONCE", 2)
    texts = ["a", "", "ab a", "b"]
    each = list(ALL_KINDS[kind].encode_each(texts))
    assert [ids.tolist() for ids in each] == [ALL_KINDS[kind].encode(t).tolist() for t in texts]
    with pytest.raises(UserError, match=r"ud800.* 1\b"):
        list(ALL_KINDS[kind].encode_each(["a", "a\ud800"]))


def test_bpe_training_is_the_same_in_every_process():
    source = (
        "from jaxformer.data.tokenizer import BPETokenizer; "
        f"print(BPETokenizer.train({TEXTS!r} * 3, 300).fingerprint)"
    )
    run = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == BPE.fingerprint


@given(text=st.text(alphabet="ab1 \n'.é\x1c\u2028漢", max_size=80), length=st.integers(0, 9))
@example(text="a\n b", length=0)
@few
def test_pieces_encode_like_the_whole(text, length):
    pieces = list(module.pieces_of(text, length))
    assert "".join(pieces) == text
    ids = [i for piece in pieces for i in SPACES._library.encode(piece).ids]
    assert ids == SPACES._library.encode(text).ids


def test_a_long_text_is_cut_into_pieces(monkeypatch):
    text = "".join(TEXTS) * 5
    whole = BPE.encode(text)
    assert len(list(module.pieces_of(text, 10))) > 5
    monkeypatch.setattr(module, "PIECE_LENGTH", 10)
    monkeypatch.setattr(module, "PIECES_AT_ONCE", 2)
    np.testing.assert_array_equal(BPE.encode(text), whole)


def test_a_text_is_not_cut_for_tokenizers_from_elsewhere(monkeypatch):
    text = "a a\na a\n" * 20  # this tokenizer prepends a word sign to every text
    tokenizer = fallback_tokenizer()
    whole = tokenizer._library.encode(text).ids
    monkeypatch.setattr(module, "PIECE_LENGTH", 10)
    assert tokenizer.encode(text).tolist() == whole


def test_special_tokens_are_text_and_none_is_added(tmp_path):
    library = tokenizers.Tokenizer.from_str(BPE.to_json())
    library.add_special_tokens(["<end>"])
    library.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A <end>", special_tokens=[("<end>", library.token_to_id("<end>"))]
    )
    library.enable_truncation(2)
    library.enable_padding(length=50)
    library.save(str(tmp_path / "tokenizer.json"))
    tokenizer = BPETokenizer.from_file(tmp_path / "tokenizer.json")
    assert tokenizer.vocab_size == BPE.vocab_size + 1
    ids = tokenizer.encode("the cat<end>\n")
    assert (ids == BPE.vocab_size).sum() == 1
    assert tokenizer.decode(ids) == "the cat<end>\n"


@pytest.mark.parametrize("kind", KINDS)
def test_a_loaded_tokenizer_equals_the_saved_one(kind, tmp_path):
    path = tmp_path / "tokenizer.json"
    save_tokenizer(KINDS[kind], path)
    assert [file.name for file in tmp_path.iterdir()] == ["tokenizer.json"]
    loaded = load_tokenizer(path)
    assert type(loaded) is type(KINDS[kind])
    assert loaded.fingerprint == KINDS[kind].fingerprint
    assert loaded.vocab_size == KINDS[kind].vocab_size
    assert loaded.encode("a 😀").tolist() == KINDS[kind].encode("a 😀").tolist()


def test_other_programs_read_a_saved_bpe(tmp_path):
    save_tokenizer(BPE, tmp_path / "tokenizer.json")
    library = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert library.encode("the café").ids == BPE.encode("the café").tolist()


def test_different_tokenizers_have_different_fingerprints():
    different = [*KINDS.values(), CharTokenizer("ab"), BPETokenizer.train(TEXTS * 3, 260)]
    assert len({tokenizer.fingerprint for tokenizer in different}) == 5


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "tokenizer.json"
    save_tokenizer(KINDS["bytes"], path)

    def no_space(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", no_space)
    with pytest.raises(UserError, match="No space left"):
        save_tokenizer(BPE, path)
    assert [file.name for file in tmp_path.iterdir()] == ["tokenizer.json"]
    assert isinstance(load_tokenizer(path), ByteTokenizer)


CORRUPT = {
    "empty": b"",
    "cut": BPE.to_json().encode()[:-20],
    "not text": b"\xff\xfe\x00",
    "other json": b"[1, 2]",
    "other object": b'{"kind": "words"}',
    "no alphabet": b'{"kind": "characters"}',
    "empty alphabet": b'{"kind": "characters", "characters": ""}',
    "unsorted alphabet": b'{"kind": "characters", "characters": "ba"}',
    "repeated character": b'{"kind": "characters", "characters": "aa"}',
    "half a character": b'{"kind": "characters", "characters": "a\\ud800"}',
    "deep": b"[" * 100_000,
    "no tokens": tokenizers.Tokenizer(tokenizers.models.BPE()).to_str().encode(),
}


@pytest.mark.parametrize("damage", CORRUPT)
def test_a_corrupt_file_is_refused_in_one_line(damage, tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(CORRUPT[damage])
    with pytest.raises(UserError, match=r"tokenizer\.json ") as caught:
        load_tokenizer(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["missing.json", "."])
def test_an_unreadable_file_is_refused(name, tmp_path):
    with pytest.raises(UserError, match=re.escape(str(tmp_path / name))):
        load_tokenizer(tmp_path / name)


def test_the_kinds_a_config_may_name(tmp_path):
    save_tokenizer(BPE, tmp_path / "tokenizer.json")
    assert isinstance(make_tokenizer("bytes", (), 0), ByteTokenizer)
    assert make_tokenizer("characters", ["ba"], 0).decode([0, 1]) == "ab"
    assert make_tokenizer("bpe", TEXTS * 3, 300).fingerprint == BPE.fingerprint
    path = str(tmp_path / "tokenizer.json")
    assert make_tokenizer(path, (), 0).fingerprint == BPE.fingerprint
    with pytest.raises(UserError, match=r"data\.tokenizer byte .*bytes, characters, bpe"):
        make_tokenizer("byte", (), 0)


def test_bytes_and_characters_are_json_objects_that_name_the_kind():
    assert json.loads(ByteTokenizer().to_json()) == {"kind": "bytes"}
    assert json.loads(CharTokenizer("aé").to_json()) == {"kind": "characters", "characters": "aé"}


def test_a_long_word_is_learned_from_in_parts():
    """In parts of `LONGEST_WORD`: as a whole these would take hours."""
    word = "".join(str(i) for i in range(9, 200_003))
    for text in (word, " \t" * 200_003, "漢" * 200_003, "!\x1c" * 200_003):
        for train in (BPETokenizer.train, BPETokenizer.train_on_sentences):
            learned = train([text], 263)
            assert learned.vocab_size > 256
            assert learned.decode(learned.encode(text[:997])) == text[:997]


@pytest.mark.parametrize("train", [BPETokenizer.train, BPETokenizer.train_on_sentences])
@pytest.mark.parametrize("character", "x ")
def test_no_token_is_longer_than_a_part_of_a_long_word(train, character):
    longest = module.LONGEST_WORD
    learned = train([character * (4 * longest)], 281)
    lengths = [len(learned.decode([token])) for token in range(learned.vocab_size)]
    assert longest // 2 <= max(lengths) <= longest


@given(st.lists(st.sampled_from(["a" * 7, "b", " ", "\n", "\u2003" * 5, "é!" * 4, "\x1c" * 9])))
@few
def test_words_are_cut_only_where_they_are_too_long(parts):
    text, limit = "".join(parts), module.LONGEST_WORD
    assert list(module._with_cut_words([text])) == [text]
    long = "x" * (2 * limit + 3)
    assert list(module._with_cut_words([f"{text} {long} {text}"])) == [
        f"{text} {'x' * limit}",
        "x" * limit,
        f"xxx {text}",
    ]
    assert list(module._with_cut_words(["y" * limit, ""])) == ["y" * limit, ""]


def test_a_byte_order_mark_before_the_rules_is_none_of_them(tmp_path):
    path = tmp_path / "tokenizer.json"
    save_tokenizer(CharTokenizer("ab"), path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert load_tokenizer(path).fingerprint == CharTokenizer("ab").fingerprint
