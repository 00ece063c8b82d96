"""The share of a text that a tokenizer loses is counted by hand."""

import pytest
import tokenizers

from jaxformer.data import lost_text as module
from jaxformer.data.lost_text import loss_note, lost_share
from jaxformer.data.tokenizer import BPETokenizer
from tests.tokenizers_of_all_kinds import ALL_KINDS, BPE, TEXTS, lossy_tokenizer


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_tokenizers_that_give_back_every_text_lose_nothing(kind):
    text = "\n\nab 漢 a\n b \n" * 3
    assert lost_share(ALL_KINDS[kind], [text, "", " a", "a "]) == 0


def test_the_lost_share_is_that_of_the_characters_that_do_not_come_back():
    lossy = lossy_tokenizer()  # of the words "the" and "cat", in lower case
    assert lost_share(lossy, ["the cat"]) == 0
    assert lost_share(lossy, ["the Cat"]) == 1 / 7  # C
    assert lost_share(lossy, ["漢字漢字"]) == 1
    assert lost_share(lossy, ["the cat", "the dog"]) == 3 / 14
    assert lost_share(lossy, ["the\ncat"]) == 1 / 7  # the newline is a space then
    assert 0 < lost_share(lossy, ["the, the"]) < 1
    assert lost_share(lossy, []) == 0


def test_a_text_that_only_gains_characters_is_not_reproduced():
    library = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1}, "a"))
    library.pre_tokenizer = tokenizers.pre_tokenizers.Split("b", "isolated")
    assert BPETokenizer(library).decode([0, 1]) == "a b"
    assert lost_share(BPETokenizer(library), ["ab"]) == 0.5


def test_a_long_text_is_compared_in_parts(monkeypatch):
    monkeypatch.setattr(module, "CHARACTERS_AT_ONCE", 5)
    assert lost_share(lossy_tokenizer(), ["the cat\nthe cat\nthe Cat"]) == 3 / 23
    assert lost_share(BPE, [text * 7 for text in TEXTS]) == 0


def test_the_note_names_the_share():
    assert loss_note(0.0) == ""
    assert "12.30% of the characters are lost" in loss_note(0.123)
    assert "less than 0.01%" in loss_note(1e-7)
