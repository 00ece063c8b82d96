"""A preparation is complete; it is loaded from the cache, or rebuilt if damaged."""

import dataclasses
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tokenizers

from jaxformer.config import DataConfig
from jaxformer.data import cache as store
from jaxformer.data import corpus as module
from jaxformer.data.corpus import prepare, read_corpus
from jaxformer.data.tokenizer import BPETokenizer, load_tokenizer, save_tokenizer
from jaxformer.errors import UserError
from tests.data.conftest import TEXT
from tests.tokenizers_of_all_kinds import lossy_tokenizer


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.mark.parametrize("kind", ["bytes", "characters", "bpe"])
def test_prepared_tokens_decode_to_the_text(kind, folder, cache):
    data = DataConfig(path=folder, tokenizer=kind, vocab_size=260, val_fraction=0.3)
    corpus, prepared = read_corpus(data), prepare(data, cache)
    for side in ("train", "val"):
        tokens = getattr(prepared, side)
        assert tokens.dtype == np.dtype("<u2")
        assert not tokens.flags.writeable
        assert prepared.tokenizer.decode(tokens) == corpus.text(side)
        assert getattr(prepared, f"{side}_bytes") == len(corpus.text(side).encode())
    assert corpus.sha256[:12] in prepared.description
    assert f"documents {len(corpus.train)} + {len(corpus.val)} (training" in prepared.description


def test_the_share_of_text_that_a_tokenizer_loses_is_measured_and_told(file, cache, tmp_path):
    own = tmp_path / "lossy.json"
    save_tokenizer(lossy_tokenizer(), own)
    file.write_text("the Cat 漢漢\n" * 50, encoding="utf-8")
    data = DataConfig(path=file, tokenizer=str(own))
    for prepared in (prepare(data, cache), prepare(data, cache)):
        assert prepared.lost == pytest.approx(4 / 11, abs=0.01)  # C, two of Han, the newline
        assert f"{prepared.lost:.2%} of the characters are lost" in prepared.description
    file.write_text("the cat the cat", encoding="utf-8")
    assert prepare(dataclasses.replace(data, val_fraction=0.5), cache).lost == 0


@pytest.mark.parametrize("text", ["the cat 漢漢漢漢漢漢", "漢漢漢漢漢漢 the cat"])
def test_the_text_of_both_sides_counts_as_lost(text, file, cache, tmp_path):
    save_tokenizer(lossy_tokenizer(), tmp_path / "lossy.json")
    file.write_text(text, encoding="utf-8")
    data = DataConfig(path=file, tokenizer=str(tmp_path / "lossy.json"), val_fraction=0.5)
    assert prepare(data, cache).lost == 6 / 14


@pytest.mark.parametrize("kind", ["bytes", "characters", "bpe", "file"])
def test_a_tokenizer_that_gives_back_every_text_loses_nothing(kind, file, cache, tmp_path):
    save_tokenizer(BPETokenizer.train([TEXT], 270), tmp_path / "own.json")
    own = str(tmp_path / "own.json") if kind == "file" else kind
    prepared = prepare(DataConfig(path=file, tokenizer=own, vocab_size=270), cache)
    assert prepared.lost == 0
    assert "lost" not in prepared.description


def test_the_description_counts_the_files_left_out(folder, cache):
    (folder / "binary").write_bytes(b"a\0b")
    (folder / ".hidden").write_text("secret")
    prepared = prepare(DataConfig(path=folder, tokenizer="bytes"), cache)
    assert "+ validation) (2 files left out" in prepared.description


def test_a_second_preparation_is_loaded_not_built(file, cache, monkeypatch):
    data = DataConfig(path=file, tokenizer="bpe", vocab_size=270)
    first = prepare(data, cache)
    monkeypatch.setattr(module, "make_tokenizer", None)
    second = prepare(data, cache)
    assert second.fingerprint == first.fingerprint
    assert second.tokenizer.fingerprint == first.tokenizer.fingerprint
    assert (second.train_bytes, second.val_bytes) == (first.train_bytes, first.val_bytes)
    assert second.description == first.description
    np.testing.assert_array_equal(second.train, first.train)
    np.testing.assert_array_equal(second.val, first.val)


def test_the_fingerprint_covers_text_split_and_tokenizer(file, folder, cache):
    configs = [
        DataConfig(path=file, tokenizer="bytes"),
        DataConfig(path=file, tokenizer="characters"),
        DataConfig(path=file, tokenizer="bpe", vocab_size=260),
        DataConfig(path=file, tokenizer="bpe", vocab_size=261),
        DataConfig(path=file, tokenizer="bytes", val_fraction=0.2),
        DataConfig(path=folder, tokenizer="bytes"),
    ]
    assert len({prepare(data, cache).fingerprint for data in configs}) == len(configs)
    assert len(list(cache.iterdir())) == len(configs)


def test_a_changed_text_or_tokenizer_file_is_prepared_again(file, tmp_path, cache):
    rules = tmp_path / "rules.json"
    data = DataConfig(path=file, tokenizer=str(rules))
    save_tokenizer(BPETokenizer.train([TEXT], 260), rules)
    first = prepare(data, cache)
    save_tokenizer(BPETokenizer.train([TEXT], 265), rules)
    second = prepare(data, cache)
    file.write_text(TEXT + "!", encoding="utf-8")
    third = prepare(data, cache)
    assert first.tokenizer.vocab_size < second.tokenizer.vocab_size == third.tokenizer.vocab_size
    assert len({first.fingerprint, second.fingerprint, third.fingerprint}) == 3


def test_bpe_is_trained_on_the_training_split_characters_on_both(tmp_path, cache):
    path = tmp_path / "text.txt"
    path.write_text("a" * 90 + "qz" * 5)
    bpe = prepare(DataConfig(path=path, vocab_size=300), cache).tokenizer
    assert len(bpe.encode("aaaa")) < 4
    assert len(bpe.encode("qzqz")) == 4
    characters = prepare(DataConfig(path=path, tokenizer="characters"), cache).tokenizer
    assert characters.decode(range(3)) == "aqz"


def test_large_vocabularies_use_four_bytes_per_token(tmp_path, cache):
    path = tmp_path / "text.txt"
    text = "".join(chr(i) for i in range(0x10000, 0x20001))
    path.write_text(text, encoding="utf-8")
    prepared = prepare(DataConfig(path=path, tokenizer="characters"), cache)
    assert prepared.train.dtype == np.dtype("<u4")
    both = np.concatenate([prepared.train, prepared.val])
    np.testing.assert_array_equal(both, np.arange(0x10001))


def flip(path):
    content = bytearray(path.read_bytes())
    content[40] ^= 1
    path.write_bytes(content)


def truncate(path):
    os.truncate(path, path.stat().st_size - 2)


@pytest.mark.parametrize("name", ["train.bin", "val.bin", "tokenizer.json", "manifest.jsonl"])
@pytest.mark.parametrize("damage", [flip, truncate, Path.unlink, lambda path: path.write_text("")])
def test_damage_is_detected_and_repaired(name, damage, file, cache, caplog):
    data = DataConfig(path=file, tokenizer="characters")
    before = prepare(data, cache)
    train, val = np.array(before.train), np.array(before.val)
    [directory] = cache.iterdir()
    names = {path.name for path in directory.iterdir()}
    damage(directory / name)
    after = prepare(data, cache)
    assert after.fingerprint == before.fingerprint
    np.testing.assert_array_equal(after.train, train)
    np.testing.assert_array_equal(after.val, val)
    assert "is damaged" in caplog.text
    assert load_tokenizer(directory / "tokenizer.json").fingerprint == after.tokenizer.fingerprint
    assert list(cache.iterdir()) == [directory]
    assert {path.name for path in directory.iterdir()} == names


def test_different_tokens_of_the_right_size_are_detected(file, cache):
    data = DataConfig(path=file, tokenizer="bytes")
    prepare(data, cache)
    [directory] = cache.iterdir()
    size = (directory / "train.bin").stat().st_size
    (directory / "train.bin").write_bytes(b"\0" * size)
    assert np.any(prepare(data, cache).train)


def test_an_incomplete_directory_is_not_used(file, cache):
    data = DataConfig(path=file, tokenizer="bytes")
    prepare(data, cache)
    [directory] = cache.iterdir()
    for path in directory.rglob("*"):
        if path.is_file():
            path.unlink()
    assert prepare(data, cache).tokenizer.decode(prepare(data, cache).train) in TEXT


def test_an_interrupted_preparation_leaves_nothing(file, cache, monkeypatch):
    def interrupt(tokenizer, path):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "save_tokenizer", interrupt)
    with pytest.raises(KeyboardInterrupt):
        prepare(DataConfig(path=file, tokenizer="bytes"), cache)
    assert list(cache.iterdir()) == []


STOPS_HALFWAY = """
import sys, time
from pathlib import Path
from jaxformer.config import DataConfig
from jaxformer.data import corpus
def stop(*arguments):
    print("halfway", flush=True)
    time.sleep(60)
corpus.save_tokenizer = stop
corpus.prepare(DataConfig(path=Path(sys.argv[1]), tokenizer="bytes"), Path(sys.argv[2]))
"""


def test_a_killed_preparation_is_never_used(file, cache):
    arguments = [sys.executable, "-c", STOPS_HALFWAY, str(file), str(cache)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"halfway\n"
        process.send_signal(signal.SIGKILL)
    [left] = cache.iterdir()
    assert left.name.startswith(store.UNFINISHED)
    prepared = prepare(DataConfig(path=file, tokenizer="bytes"), cache)
    assert prepared.tokenizer.decode(prepared.val) == TEXT[int(len(TEXT) * 0.9) :]
    assert left.exists()  # it could belong to a process that is still running
    long_ago = time.time() - store.ABANDONED_AFTER - 1
    os.utime(left, (long_ago, long_ago))
    prepare(DataConfig(path=file, tokenizer="characters"), cache)
    assert not left.exists()
    assert len(list(cache.iterdir())) == 2


def _prepare(arguments):
    return prepare(*arguments).fingerprint


def test_processes_may_prepare_the_same_data_at_once(file, cache):
    data = DataConfig(path=file, tokenizer="bytes")
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        fingerprints = pool.map(_prepare, [(data, cache)] * 6, chunksize=1)
    assert set(fingerprints) == {prepare(data, cache).fingerprint}
    assert len(list(cache.iterdir())) == 1


def test_a_slower_process_leaves_the_faster_ones_directory_in_place(file, cache, monkeypatch):
    data = DataConfig(path=file, tokenizer="bytes")
    install = store.install

    def too_late(made, directory, aside):
        shutil.copytree(made, directory)
        monkeypatch.setattr("os.rename", refuse)
        install(made, directory, aside)

    def refuse(source, target):
        raise FileNotFoundError(2, "gone") if target.name == "damaged" else OSError(39, "not empty")

    monkeypatch.setattr(store, "install", too_late)
    second = prepare(data, cache)
    assert second.tokenizer.decode(second.train) == read_corpus(data).text("train")
    assert len(list(cache.iterdir())) == 1


def test_tokens_outlive_the_cache(file, cache):
    prepared = prepare(DataConfig(path=file, tokenizer="bytes"), cache)
    shutil.rmtree(cache)
    assert prepared.tokenizer.decode(prepared.train) == TEXT[: int(len(TEXT) * 0.9)]


def test_a_cache_that_cannot_be_written_is_named(file, tmp_path):
    (tmp_path / "occupied").touch()
    with pytest.raises(UserError, match=r"occupied .*JAXFORMER_CACHE"):
        prepare(DataConfig(path=file, tokenizer="bytes"), tmp_path / "occupied")


def test_the_cache_is_where_the_environment_says(file, tmp_path, monkeypatch):
    data = DataConfig(path=file, tokenizer="bytes")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("JAXFORMER_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    prepare(data)
    assert len(list((tmp_path / "home/.cache/jaxformer").iterdir())) == 1
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    prepare(data)
    assert len(list((tmp_path / "xdg/jaxformer").iterdir())) == 1
    monkeypatch.setenv("JAXFORMER_CACHE", str(tmp_path / "own"))
    prepare(data)
    assert len(list((tmp_path / "own").iterdir())) == 1


def test_a_text_without_tokens_is_refused(tmp_path, cache):
    path = tmp_path / "text.txt"
    path.write_text("a" * 100)
    rules = BPETokenizer.train(["b"], 256)
    rules._library.normalizer = tokenizers.normalizers.Replace("a", "")
    save_tokenizer(rules, tmp_path / "rules.json")
    with pytest.raises(UserError, match="no tokens"):
        prepare(DataConfig(path=path, tokenizer=str(tmp_path / "rules.json")), cache)
    assert list(cache.iterdir()) == []
