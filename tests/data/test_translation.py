"""Prepared pairs decode to their texts, are loaded again complete, and count dropped pairs."""

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest

from jaxformer.batch import SpecialTokens
from jaxformer.config import CopyConfig, NumbersConfig, TextPairsConfig
from jaxformer.data import translation as module
from jaxformer.data.clean import Cleaning
from jaxformer.data.pairs import Pair
from jaxformer.data.tokenizer import BPETokenizer, CharTokenizer, save_tokenizer
from jaxformer.data.translation import prepare_pairs, read_pairs
from jaxformer.errors import UserError
from tests.tokenizers_of_all_kinds import lossy_tokenizer

PAIRS = [Pair(f"the cat saw {i} dogs", f"die Katze sah {i} Hündchen") for i in range(120)]


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def text_pairs(folder, pairs=PAIRS, **changes):
    """Settings whose files hold `pairs`."""
    for i, name in enumerate(("source.txt", "target.txt")):
        (folder / name).write_text("".join(pair[i] + "\n" for pair in pairs), encoding="utf-8")
    files = {"source": folder / "source.txt", "target": folder / "target.txt"}
    return TextPairsConfig(**{**files, "val_fraction": 0.2, "vocab_size": 300, **changes})


def decoded(prepared, side):
    pairs, tokenizer = getattr(prepared, side), prepared.tokenizer
    return tuple(
        Pair(tokenizer.decode(pairs.sources[i]), tokenizer.decode(pairs.targets[i]))
        for i in range(len(pairs))
    )


NUMBERS = NumbersConfig(num_pairs=50, num_val_pairs=20, vocab_size=300)
STRINGS = CopyConfig(reverse=True, num_pairs=50, num_val_pairs=20)


@pytest.mark.parametrize("kind", ["bytes", "characters", "bpe", NUMBERS, STRINGS])
def test_prepared_tokens_decode_to_the_texts(kind, tmp_path, cache):
    data = text_pairs(tmp_path, tokenizer=kind, max_tokens=200) if isinstance(kind, str) else kind
    texts, prepared = read_pairs(data), prepare_pairs(data, cache)
    assert decoded(prepared, "train") == texts.train
    assert decoded(prepared, "val") == prepared.val_texts == texts.val
    assert prepared.val_bytes == sum(len(pair.target.encode()) for pair in texts.val)
    V = prepared.tokenizer.vocab_size
    assert prepared.specials == SpecialTokens(padding=V, start=V + 1, end=V + 2)
    assert prepared.train.sources.tokens.dtype == np.dtype("<u2")
    assert texts.sha256()[:12] in prepared.description
    assert "\n" not in prepared.description


def test_the_share_of_text_that_a_tokenizer_loses_is_measured_and_told(tmp_path, cache):
    save_tokenizer(lossy_tokenizer(), tmp_path / "lossy.json")
    pairs = [Pair("the cat", "cat the"), Pair("the Cat", "the"), Pair("cat", "cat the")] * 3
    data = text_pairs(tmp_path, pairs, tokenizer=str(tmp_path / "lossy.json"), val_fraction=0.5)
    prepared = prepare_pairs(data, cache)
    kept = {text for pair in read_pairs(data).train + read_pairs(data).val for text in pair}
    assert prepared.lost == 1 / 34
    assert "the Cat" in kept
    assert "2.94% of the characters are lost" in prepared.description
    for tokenizer in ("bpe", "bytes"):
        prepared = prepare_pairs(dataclasses.replace(data, tokenizer=tokenizer), cache)
        assert prepared.lost == 0
        assert "lost" not in prepared.description


def test_bpe_has_the_same_tokens_for_a_word_at_any_position(tmp_path, cache):
    prepared = prepare_pairs(text_pairs(tmp_path), cache)
    encode = prepared.tokenizer.encode
    first, later = encode("cat saw"), encode("the cat saw")
    assert later[-len(first) :].tolist() == first.tolist()
    assert len(first) == 2
    assert len(encode("Katze")) < 5  # BPE is trained on both sides


def test_bpe_is_trained_on_the_training_split_characters_on_both(tmp_path, cache):
    (tmp_path / "val.txt").write_text("qzqzqz\n" * 9)
    val = {"val_source": tmp_path / "val.txt", "val_target": tmp_path / "val.txt"}
    bpe = prepare_pairs(text_pairs(tmp_path, **val), cache).tokenizer
    assert len(bpe.encode("qzqz")) == 5  # a space and four letters
    characters = prepare_pairs(text_pairs(tmp_path, tokenizer="characters", **val), cache).tokenizer
    assert len(characters.encode("qz")) == 2


def test_a_second_preparation_is_loaded_not_built(tmp_path, cache, monkeypatch):
    data = text_pairs(tmp_path)
    first = prepare_pairs(data, cache)
    monkeypatch.setattr(module, "_make_tokenizer", None)
    second = prepare_pairs(data, cache)
    for field in ("fingerprint", "description", "val_texts", "val_bytes", "specials"):
        assert getattr(second, field) == getattr(first, field)
    assert decoded(second, "train") == decoded(first, "train")


def test_the_fingerprint_covers_texts_split_tokenizer_and_cleaning(tmp_path, cache):
    configs = [
        text_pairs(tmp_path),
        text_pairs(tmp_path, val_fraction=0.3),
        text_pairs(tmp_path, vocab_size=280),
        text_pairs(tmp_path, tokenizer="bytes"),
        text_pairs(tmp_path, tokenizer="characters"),
        text_pairs(tmp_path, max_tokens=30),
        text_pairs(tmp_path, max_ratio=4.0),
        NUMBERS,
        dataclasses.replace(NUMBERS, target_language="fr"),
        STRINGS,
        dataclasses.replace(STRINGS, reverse=False),
    ]
    prepared = [prepare_pairs(data, cache).fingerprint for data in configs]
    assert len(set(prepared)) == len(configs) == len(list(cache.iterdir()))
    (tmp_path / "source.txt").write_text("".join(f"{i} {i} {i}\n" for i in range(120)))
    assert prepare_pairs(configs[0], cache).fingerprint not in prepared


def test_a_tokenizer_file_is_used_unchanged(tmp_path, cache):
    rules = tmp_path / "rules.json"
    save_tokenizer(BPETokenizer.train_on_sentences(["the cat"] * 3, 260), rules)
    data = text_pairs(tmp_path, tokenizer=str(rules))
    first = prepare_pairs(data, cache)
    assert first.tokenizer.encode("the cat").size < 5
    save_tokenizer(CharTokenizer.from_texts(t for pair in PAIRS for t in pair), rules)
    second = prepare_pairs(data, cache)
    assert isinstance(second.tokenizer, CharTokenizer)
    assert first.fingerprint != second.fingerprint


def test_only_training_pairs_are_dropped_and_they_are_counted(tmp_path, cache):
    long, unequal = Pair("a" * 50, "b" * 50), Pair("a", "b" * 9)
    train = [Pair("a" * 9, "b" * 9), long, unequal, unequal, Pair("", "b"), PAIRS[0]]
    val = [long, unequal, PAIRS[0], Pair("", "")]
    for name, i in (("val.a", 0), ("val.b", 1)):
        (tmp_path / name).write_text("".join(pair[i] + "\n" for pair in val), encoding="utf-8")
    files = {"val_source": tmp_path / "val.a", "val_target": tmp_path / "val.b"}
    train += [Pair("c" * 50, "d"), Pair("c", "d" * 9)]
    data = text_pairs(tmp_path, train, tokenizer="bytes", max_tokens=20, **files)
    prepared = prepare_pairs(data, cache)
    assert decoded(prepared, "train") == (train[0],)
    assert decoded(prepared, "val") == tuple(val)
    dropped = Cleaning(8, empty=1, held_out=4, too_long=1, unequal=1)
    assert str(dropped) in prepared.description


def test_cleaning_that_leaves_no_pairs_is_refused(tmp_path, cache):
    with pytest.raises(UserError, match=r"120 too long.*data\.max-tokens") as caught:
        prepare_pairs(text_pairs(tmp_path, max_tokens=1), cache)
    assert "\n" not in str(caught.value)
    assert list(cache.iterdir()) == []


def flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


NAMES = ["train.source.npy", "val.target.offsets.npy", "tokenizer.json", "manifest.jsonl"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "damage",
    [flip, lambda path: os.truncate(path, 9), Path.unlink, lambda path: path.write_text("")],
)
def test_damage_is_detected_and_repaired(name, damage, tmp_path, cache, caplog):
    data = text_pairs(tmp_path, tokenizer="characters")
    before = prepare_pairs(data, cache)
    pairs = decoded(before, "train")
    [directory] = cache.iterdir()
    damage(directory / name)
    after = prepare_pairs(data, cache)
    assert "is damaged" in caplog.text
    assert after.fingerprint == before.fingerprint
    assert decoded(after, "train") == pairs
    assert len([path for path in directory.iterdir() if path.is_file()]) == 11


def test_an_interrupted_preparation_leaves_nothing(tmp_path, cache, monkeypatch):
    def interrupt(directory, content):
        raise KeyboardInterrupt

    monkeypatch.setattr("jaxformer.manifest.write", interrupt)
    with pytest.raises(KeyboardInterrupt):
        prepare_pairs(text_pairs(tmp_path), cache)
    assert list(cache.iterdir()) == []


def test_large_vocabularies_use_four_bytes_per_token(tmp_path, cache):
    letters = "".join(chr(i) for i in range(0x10000, 0x20010))
    pairs = [Pair(letters[i : i + 200], letters[:9]) for i in range(0, len(letters), 200)]
    data = text_pairs(tmp_path, pairs, tokenizer="characters", max_tokens=300, max_ratio=100.0)
    prepared = prepare_pairs(data, cache)
    assert prepared.train.sources.tokens.dtype == np.dtype("<u4")
    assert decoded(prepared, "train") == read_pairs(data).train


def test_the_manifest_counts_the_dropped_pairs(tmp_path, cache):
    prepare_pairs(text_pairs(tmp_path, PAIRS * 2), cache)
    [directory] = cache.iterdir()
    line = (directory / "manifest.jsonl").read_text().splitlines()[0]
    assert json.loads(line)["cleaning"]["repeated"] == len(PAIRS)


def test_only_held_out_pairs_without_a_file_are_cleaned_by_length(tmp_path, cache):
    data = text_pairs(tmp_path, val_fraction=0.3)
    longest = max(prepare_pairs(data, cache).val.lengths)
    shorter = prepare_pairs(dataclasses.replace(data, max_tokens=int(longest) - 2), cache)
    assert 0 < len(shorter.val) == len(shorter.val_texts) < len(prepare_pairs(data, cache).val)
    assert shorter.val.sources.lengths.max() <= longest - 2
    assert decoded(shorter, "val") == shorter.val_texts
    long = tmp_path / "long.txt"
    long.write_text("cat " * 50 + "\n")
    given = dataclasses.replace(data, val_source=long, val_target=long, max_tokens=20)
    assert len(prepare_pairs(given, cache).val) == 1
