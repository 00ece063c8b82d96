"""A corpus is split by its rule, whatever its files are called and wherever they are."""

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxformer.config import DataConfig
from jaxformer.data import corpus as module
from jaxformer.data.corpus import SEPARATOR, prepare, read_corpus, read_text
from jaxformer.errors import UserError
from tests.data.conftest import TEXT


def test_a_file_is_split_at_a_fraction_of_its_characters(file):
    corpus = read_corpus(DataConfig(path=file))
    cut = int(len(TEXT) * 0.9)
    assert (corpus.train, corpus.val) == ((TEXT[:cut],), (TEXT[cut:],))
    assert corpus.name == "text.txt"
    assert corpus.num_bytes("train") + corpus.num_bytes("val") == len(TEXT.encode())


def test_line_endings_are_kept(tmp_path):
    (tmp_path / "dos.txt").write_bytes(b"one\r\ntwo\r\n\r\nthree\r")
    corpus = read_corpus(DataConfig(path=tmp_path / "dos.txt", val_fraction=0.5))
    assert corpus.text("train") + corpus.text("val") == "one\r\ntwo\r\n\r\nthree\r"


def test_a_directory_is_split_by_document(folder):
    corpus = read_corpus(DataConfig(path=folder, val_fraction=0.3))
    assert sorted(corpus.train + corpus.val) == sorted(f"document {i}\n" for i in range(40))
    assert 4 <= len(corpus.val) <= 20
    assert len(corpus.train) + len(corpus.val) == 40
    assert corpus.text("val") == SEPARATOR.join(corpus.val)
    outer = [text for text in corpus.train if int(text.split()[1]) % 2 == 0]
    assert outer == sorted(outer, key=lambda text: int(text.split()[1]))


def test_adding_a_file_moves_no_other(folder):
    data = DataConfig(path=folder, val_fraction=0.3)
    before = read_corpus(data)
    (folder / "a first one.txt").write_text("new\n")
    after = read_corpus(data)
    assert [text for text in after.train if text != "new\n"] == list(before.train)
    assert [text for text in after.val if text != "new\n"] == list(before.val)
    assert after.sha256 != before.sha256


def test_a_directory_with_an_empty_split_is_split_like_a_file(tmp_path):
    (tmp_path / "only.txt").write_text("0123456789")
    (tmp_path / ".hidden").write_text("secret")
    corpus = read_corpus(DataConfig(path=tmp_path))
    assert (corpus.train, corpus.val) == (("012345678",), ("9",))
    assert corpus.num_skipped == 1


def test_files_that_are_not_text_are_skipped_and_counted(folder):
    (folder / "binary").write_bytes(b"a\0b")
    (folder / "latin.txt").write_bytes("é".encode("latin-1"))
    (folder / "empty.txt").touch()
    (folder / ".hidden").write_text("secret")
    (folder / ".git").mkdir()
    (folder / ".git" / "log").write_text("secret")  # not entered, so not counted
    (folder / "dangling").symlink_to(folder / "nowhere")  # not a file, so not counted
    corpus = read_corpus(DataConfig(path=folder))
    assert len(corpus.train) + len(corpus.val) == 40
    assert corpus.num_skipped == 4


def test_the_hash_covers_text_order_and_split(folder, file):
    def sha(**changes):
        return read_corpus(DataConfig(**{"path": folder, **changes})).sha256

    first = sha()
    assert sha() == first
    assert sha(val_fraction=0.6) != first
    moved = folder.rename(folder.with_name("elsewhere"))
    assert sha(path=moved) == first
    (moved / "00.txt").write_text("Document 0\n")
    assert sha(path=moved) != first


@given(st.lists(st.sampled_from(["", "a", "b", "ab", SEPARATOR]), min_size=1, max_size=4))
@settings(deadline=None, max_examples=50)
def test_documents_divided_differently_have_another_hash(documents):
    corpus = module.Corpus("x", tuple(documents), ("v",))
    joined = module.Corpus("x", ("".join(documents),), ("v",))
    crossed = module.Corpus("x", ("v",), tuple(documents))
    assert (corpus.sha256 == joined.sha256) == (corpus.train == joined.train)
    assert (corpus.sha256 == crossed.sha256) == (corpus.train == crossed.train)


def test_the_default_is_the_standard_library_without_its_tests():
    corpus = read_corpus(DataConfig())
    documents = corpus.train + corpus.val
    assert corpus.name.startswith("python-3")
    assert sum("class OrderedDict(dict)" in document for document in documents) == 1
    assert not any("class TestOrderedDict" in document for document in documents)
    assert 8e6 < corpus.num_bytes("train") + corpus.num_bytes("val") < 20e6
    assert read_corpus(DataConfig()).sha256 == corpus.sha256


def empty_file(root):
    (root / "x").touch()
    return root / "x"


def no_unicode(root):
    (root / "x").write_bytes(b"caf\xe9")
    return root / "x"


def no_text(root):
    (root / "x").write_bytes(b"\0")
    return root


def one_letter(root):
    (root / "x").write_text("a")
    return root


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (empty_file, "x has 0 characters"),
        (no_unicode, "data.path .*/x .*UTF-8"),
        (no_text, "data.path .*UTF-8"),
        (one_letter, r"\b1 characters"),
        (lambda root: Path(os.devnull), f"data.path {os.devnull} "),
        (lambda root: root / "missing", "data.path .*/missing "),
        (lambda root: root, "data.path .*UTF-8"),
    ],
)
def test_bad_sources_are_refused_in_one_line(make, message, tmp_path):
    with pytest.raises(UserError, match=message) as caught:
        read_corpus(DataConfig(path=make(tmp_path)))
    assert "\n" not in str(caught.value)


def test_an_unreadable_file_is_refused_not_skipped(folder, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(UserError, match=r"data\.path.*00\.txt.*Permission denied"):
        read_corpus(DataConfig(path=folder))


def test_an_unreadable_directory_is_refused_not_skipped(folder, monkeypatch):
    scandir = os.scandir

    def refuse(path):
        if Path(path).name == "inner":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr("os.scandir", refuse)
    with pytest.raises(UserError, match=r"data\.path.*inner.*Permission denied"):
        read_corpus(DataConfig(path=folder))


def test_a_byte_order_mark_is_no_character_of_the_text(tmp_path):
    (tmp_path / "marked.txt").write_bytes(b"\xef\xbb\xbf" + TEXT.encode())
    (tmp_path / "plain.txt").write_text(TEXT, encoding="utf-8")
    marked, plain = (
        read_corpus(DataConfig(path=tmp_path / f"{n}.txt")) for n in ("marked", "plain")
    )
    assert marked.sha256 == plain.sha256
    assert read_text(tmp_path / "marked.txt") == TEXT
    # In a directory, too; within a text it is a character like any other.
    (tmp_path / "plain.txt").write_text(f"a\ufeff{TEXT}", encoding="utf-8")
    assert read_text(tmp_path) == f"{TEXT}{SEPARATOR}a\ufeff{TEXT}"


@pytest.mark.parametrize("place", ["runs/x", "inner/deeper", "cache"])
def test_runs_and_preparations_are_no_documents(folder, place):
    before = read_corpus(DataConfig(path=folder))
    directory = folder / place
    directory.mkdir(parents=True)
    if place == "cache":
        prepare(DataConfig(path=folder, tokenizer="bytes"), directory)
    else:
        (directory / "config.json").write_text('{"kind": "gpt"}')
        (directory / "samples").mkdir()
        (directory / "samples" / "1.txt").write_text("of the run")
    assert read_corpus(DataConfig(path=folder)) == before


@pytest.mark.parametrize("content", ['{"kind": "bert-like"}', '["kind"]', "{", '{"kind": []}'])
def test_other_configurations_are_documents(folder, content):
    (folder / "config.json").write_text(content)
    (folder / "manifest.jsonl").write_text("{}\n")
    corpus = read_corpus(DataConfig(path=folder))
    assert {content, "{}\n"} <= {*corpus.train, *corpus.val}
