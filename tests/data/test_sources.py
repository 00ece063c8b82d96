"""A preparation opens without its text being read, unless a file of it has changed."""

import os
import time

import pytest

from jaxformer.config import CopyConfig, DataConfig, TextPairsConfig
from jaxformer.data import corpus, sources, translation
from jaxformer.data.corpus import prepare
from jaxformer.data.pairs import Pair
from jaxformer.data.translation import prepare_pairs
from tests.data.conftest import TEXT


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache that trusts files at once, as if they had not changed for long."""
    monkeypatch.setattr(sources, "SETTLED_NS", 0)
    return tmp_path / "cache"


@pytest.fixture
def unread(monkeypatch):
    """After this call no text is read."""

    def unread():
        def refuse(data):
            pytest.fail("the text was read again")

        monkeypatch.setattr(corpus, "read_corpus", refuse)
        monkeypatch.setattr(translation, "read_pairs", refuse)

    return unread


def settle():
    """Let the file system's clock tick, so that files written before have older times."""
    time.sleep(0.05)


def text_pairs(tmp_path):
    for name in ("source", "target"):
        lines = [f"{name} {i} words" for i in range(60)]
        (tmp_path / name).write_text("\n".join(lines), encoding="utf-8")
    files = {"source": tmp_path / "source", "target": tmp_path / "target"}
    return TextPairsConfig(**files, val_fraction=0.3, tokenizer="bytes")


@pytest.mark.parametrize("kind", ["file", "folder", "pairs"])
def test_an_unchanged_text_is_not_read_again(kind, tmp_path, request, cache, unread):
    if kind == "pairs":
        data, read = text_pairs(tmp_path), prepare_pairs
    else:
        data, read = DataConfig(path=request.getfixturevalue(kind), tokenizer="bytes"), prepare
    settle()
    first = read(data, cache)
    unread()
    second = read(data, cache)
    assert second.fingerprint == first.fingerprint
    assert second.description == first.description
    assert second.val_bytes == first.val_bytes
    if kind == "pairs":
        assert second.val_texts == first.val_texts
        assert isinstance(second.val_texts[0], Pair)
    else:
        assert second.tokenizer.decode(second.train) == first.tokenizer.decode(first.train)


def test_a_text_changed_under_its_old_size_and_time_is_read_again(file, cache):
    data = DataConfig(path=file, tokenizer="bytes")
    settle()
    first, before = prepare(data, cache), file.stat()
    file.write_text(TEXT.upper(), encoding="utf-8")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert prepare(data, cache).fingerprint != first.fingerprint


@pytest.mark.parametrize("change", ["added", "removed", "renamed"])
def test_files_that_come_and_go_are_noticed(change, folder, cache):
    data = DataConfig(path=folder, tokenizer="bytes", val_fraction=0.3)
    settle()
    first = prepare(data, cache)
    if change == "added":
        (folder / "more.txt").write_text("one more document")
    elif change == "removed":
        (folder / "00.txt").unlink()
    else:
        (folder / "00.txt").rename(folder / ".hidden")
    assert prepare(data, cache).fingerprint != first.fingerprint


def test_a_text_that_has_just_been_written_is_read_again(file, tmp_path, monkeypatch):
    """Its next change might have the same times."""
    monkeypatch.setattr(sources, "SETTLED_NS", 10**15)
    data, read = DataConfig(path=file, tokenizer="bytes"), []
    within = corpus.read_corpus
    monkeypatch.setattr(corpus, "read_corpus", lambda data: read.append(data) or within(data))
    prepare(data, tmp_path / "cache")
    prepare(data, tmp_path / "cache")
    assert read == [data, data]


def test_other_settings_of_the_same_files_are_prepared_for_themselves(file, cache):
    settle()
    prepare(DataConfig(path=file, tokenizer="bytes"), cache)
    assert prepare(DataConfig(path=file, tokenizer="characters"), cache).tokenizer.vocab_size < 256
    more = prepare(DataConfig(path=file, tokenizer="bytes", val_fraction=0.5), cache)
    assert abs(len(more.train) - len(more.val)) <= 40


def test_a_record_is_of_one_kind_of_data_and_one_format(file):
    data = DataConfig(path=file)
    names = {sources.look_at(data, version, [file]).name for version in (1, 2)}

    class Other(DataConfig):
        pass

    assert len(names | {sources.look_at(Other(path=file), 1, [file]).name}) == 3


def test_a_file_that_is_not_there_has_no_record(tmp_path):
    assert sources.look_at(DataConfig(), 1, [tmp_path / "missing"]) is None


@pytest.mark.parametrize(
    "content", [b"", b"\xff", b"[]", b"{}", b"null", b'{"time_ns": "x"}', b"[" * 100_000]
)
def test_a_damaged_record_is_none(content, file, cache):
    data = DataConfig(path=file, tokenizer="bytes")
    settle()
    first = prepare(data, cache)
    [record] = cache.glob(f"*/{sources.DIRECTORY}/*")
    record.write_bytes(content)
    assert prepare(data, cache).fingerprint == first.fingerprint


def test_damaged_tokens_of_an_unchanged_text_are_made_again(file, cache):
    data = DataConfig(path=file, tokenizer="bytes")
    settle()
    first = prepare(data, cache)
    tokens = first.train.tobytes()
    [directory] = cache.iterdir()
    (directory / "train.bin").write_bytes(b"\0" * len(tokens))
    assert prepare(data, cache).train.tobytes() == tokens


def test_generated_pairs_have_no_files(tmp_path, cache):
    data = CopyConfig(num_pairs=40, num_val_pairs=8)
    assert prepare_pairs(data, cache).fingerprint == prepare_pairs(data, cache).fingerprint
    [directory] = cache.iterdir()
    assert not (directory / sources.DIRECTORY).exists()


def test_a_relative_path_is_the_same_file(file, tmp_path, cache, unread, monkeypatch):
    settle()
    monkeypatch.chdir(tmp_path)
    prepare(DataConfig(path=file.relative_to(tmp_path), tokenizer="bytes"), cache)
    unread()
    monkeypatch.chdir("/")
    prepare(DataConfig(path=file, tokenizer="bytes"), cache)
