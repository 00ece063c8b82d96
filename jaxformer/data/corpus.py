"""The corpus of a language run: its text, the split, and the tokens prepared once on disk.

Three sources: a UTF-8 file, a directory of UTF-8 files, or the standard library of the running
Python, about 11 MB of source on every machine. It differs between versions, so losses are
comparable only where the corpus hashes are equal. A byte-order mark at the start of a file is not
part of its text, and runs and preparations in a directory are none of its documents.

A preparation is a directory of the cache, keyed by the corpus and the settings of the tokenizer:

    train.bin, val.bin   token ids, little-endian uint16 (uint32 from 65,536 tokens on)
    tokenizer.json       what made them
    manifest.jsonl       hashes of all of it, bytes of text
    sources/             the files it was made from (sources.py)
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import platform
import sysconfig
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxformer import manifest
from jaxformer.atomic import atomic_write
from jaxformer.config import RUN_CONFIGS, DataConfig
from jaxformer.data import sources
from jaxformer.data.batches import Tokens
from jaxformer.data.cache import default_cache, load_or_build
from jaxformer.data.lost_text import loss_note, lost_share
from jaxformer.data.tokenizer import (
    BUILT_IN,
    Tokenizer,
    load_tokenizer,
    make_tokenizer,
    save_tokenizer,
)
from jaxformer.errors import UserError

SEPARATOR = "\n\n"  # between the documents of a split; a blank line in nearly every format
FORMAT = 2  # of a preparation; raise it when the same settings would give other files
SIDES = ("train", "val")
TESTS = {"test", "tests", "idle_test"}
GENERATED = {"__pycache__", "pydoc_data"}  # pydoc_data: one file of prose, a sixteenth of it
NOT_THE_LIBRARY = {"site-packages", "dist-packages"} | TESTS | GENERATED


@dataclasses.dataclass(frozen=True)
class Corpus:
    """The documents of both splits, and a hash of exactly these."""

    name: str
    train: tuple[str, ...]
    val: tuple[str, ...]
    num_skipped: int = 0
    """Files of a directory that were left out: hidden, empty, binary or not UTF-8."""

    def text(self, side: str) -> str:
        """The documents of `train` or `val` joined by `SEPARATOR`: the text to tokenize."""
        return SEPARATOR.join(getattr(self, side))

    def num_bytes(self, side: str) -> int:
        """UTF-8 bytes of `text(side)`."""
        return len(self.text(side).encode())

    @functools.cached_property
    def sha256(self) -> str:
        """Hash of every document and its split; file names and directories do not count."""
        digest = hashlib.sha256()
        for side in SIDES:
            documents = [document.encode() for document in getattr(self, side)]
            digest.update(f"{side} {[len(document) for document in documents]}".encode())
            for document in documents:
                digest.update(document)
        return digest.hexdigest()


@dataclasses.dataclass(frozen=True)
class PreparedData:
    """A corpus as tokens, memory-mapped."""

    tokenizer: Tokenizer
    train: Tokens
    """Token ids, shape (number of tokens,), uint16 or uint32, read-only."""
    val: Tokens
    train_bytes: int | None
    """UTF-8 bytes of the training text; None if its tokens alone are there."""
    val_bytes: int | None
    """The same of the validation text: bits per byte = nats per token / ln 2 * tokens / bytes."""
    fingerprint: str
    """SHA-256 of corpus, split and tokenizer; a resumed run must find the same."""
    lost: float
    """Share of the characters that decoding does not give back; if it is not 0, bits per byte of
    text have no meaning."""
    description: str
    """One line for the log."""

    @property
    def num_train_tokens(self) -> int:
        """Tokens that the training text comes to."""
        return len(self.train)

    @property
    def num_val_tokens(self) -> int:
        """Tokens that the validation text comes to."""
        return len(self.val)


def read_corpus(data: DataConfig) -> Corpus:
    """Read and split the text of `data.path`.

    A file is split at `1 - val_fraction` of its characters, as in the published 90/10 split of
    tinyshakespeare. In a directory the split of a document follows from a hash of its relative
    path, so that adding a file moves no other; if a split would be empty, the joined text is split
    like a file.

    Raises UserError for a path that is missing or unreadable, a file that is not UTF-8, and a text
    too short to split.
    """
    if data.path is None:
        root = Path(sysconfig.get_path("stdlib"))
        name = f"python-{platform.python_version()}-stdlib"
        return _split_by_document(name, root, _library_files(root), data.val_fraction)
    if os.path.isdir(data.path):
        name = data.path.resolve().name
        return _split_by_document(name, data.path, _files(data.path), data.val_fraction)
    if not os.path.isfile(data.path):
        raise _missing(data.path)
    return _split_text(data.path.name, _text_of(data.path), data.val_fraction)


def read_text(path: Path) -> str:
    """The whole text of a file, or of a directory's documents joined by `SEPARATOR`.

    Raises UserError as `read_corpus` does.
    """
    if os.path.isdir(path):
        return SEPARATOR.join(text for _, text in _documents(path, _files(path)))
    if not os.path.isfile(path):
        raise _missing(path)
    return _text_of(path)


def fingerprint_with(data: DataConfig, tokenizer: Tokenizer) -> str:
    """The fingerprint that the data of a configuration have with this tokenizer."""
    return fingerprint_of(read_corpus(data).sha256, tokenizer)


def fingerprint_of(corpus: str, tokenizer: Tokenizer) -> str:
    """The fingerprint of data with the hash `corpus` and this tokenizer."""
    return hashlib.sha256(f"{corpus} {tokenizer.fingerprint}".encode()).hexdigest()


def _files(root: Path, left_out: Container[str] = ()) -> list[Path]:
    """Sorted paths of the files below `root`, relative to it, without those of hidden directories,
    of runs and of preparations: what a run writes must not become its text."""

    def refuse(error: OSError) -> None:
        raise _unreadable(error.filename, error)

    found = []
    for folder, subfolders, names in os.walk(root, onerror=refuse):
        if _is_written_here(Path(folder)):
            subfolders.clear()
            continue
        subfolders[:] = [s for s in subfolders if not s.startswith(".") and s not in left_out]
        found += [path for name in names if (path := Path(folder, name)).is_file()]
    return sorted(path.relative_to(root) for path in found)


def _is_written_here(folder: Path) -> bool:
    """Whether it is the directory of a run, a checkpoint or a preparation."""
    with contextlib.suppress(manifest.CorruptionError, ValueError):
        manifest.read(folder)
        return True
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError, RecursionError):
        return json.loads((folder / "config.json").read_bytes())["kind"] in RUN_CONFIGS
    return False


def _library_files(root: Path) -> list[Path]:
    return [path for path in _files(root, NOT_THE_LIBRARY) if path.suffix == ".py"]


def _split_by_document(name: str, root: Path, files: list[Path], val_fraction: float) -> Corpus:
    sides: dict[str, list[str]] = {side: [] for side in SIDES}
    for file, text in _documents(root, files):
        sides["val" if _draw(file) < val_fraction * 2**64 else "train"].append(text)
    documents = sides["train"] + sides["val"]
    num_skipped = len(files) - len(documents)
    if not documents:
        raise UserError(
            f"data.path {root} holds no UTF-8 text files: name a text file or a directory of them"
        )
    if not (sides["train"] and sides["val"]):
        corpus = _split_text(name, SEPARATOR.join(documents), val_fraction)
        return dataclasses.replace(corpus, num_skipped=num_skipped)
    return Corpus(name, tuple(sides["train"]), tuple(sides["val"]), num_skipped)


def _documents(root: Path, files: list[Path]) -> Iterator[tuple[Path, str]]:
    """The files that are text, neither hidden nor empty, and what they hold."""
    for file in files:
        text = None if file.name.startswith(".") else _decoded(_read(root / file))
        if text and "\0" not in text:
            yield file, text


def _draw(file: Path) -> int:
    """A number below 2^64 that depends only on the relative path."""
    return int.from_bytes(hashlib.sha256(os.fsencode(file.as_posix())).digest()[:8], "big")


def _split_text(name: str, text: str, val_fraction: float) -> Corpus:
    cut = int(len(text) * (1 - val_fraction))
    if not 0 < cut < len(text):
        raise UserError(
            f"the text of {name} has {len(text):,} characters, too few to split: give a longer text"
        )
    return Corpus(name, (text[:cut],), (text[cut:],))


def _text_of(path: Path) -> str:
    text = _decoded(_read(path))
    if text is None:
        raise UserError(f"data.path {path} is not UTF-8 text: convert it or name another file")
    return text


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from error


def _missing(path: Path) -> UserError:
    return UserError(
        f"data.path {path} is not a file or directory: check its spelling, or name where the text "
        "is now by --data.path"
    )


def _unreadable(path: Path | str, error: OSError) -> UserError:
    return UserError(
        f"data.path: {path} cannot be read ({error.strerror}): make it readable or move it away"
    )


def _decoded(content: bytes) -> str | None:
    try:
        return content.decode("utf-8-sig")  # less the byte-order mark, if there is one
    except UnicodeDecodeError:
        return None


def prepare(data: DataConfig, cache: Path | None = None) -> PreparedData:
    """The tokens of `data`, from the cache or built now.

    BPE is trained on the training split only. A character tokenizer takes its alphabet from the
    whole text, as in the published character-level settings.

    Equal settings on equal text give an equal `fingerprint`. Raises UserError for the reasons of
    `read_corpus`, the tokenizers and `cache.load_or_build`.
    """
    cache = cache or default_cache()
    found = sources.look_at(data, FORMAT, _source_files(data))
    if found and (known := sources.find(cache, found)):
        directory, description = known
        if prepared := _open(directory):
            return dataclasses.replace(prepared, description=description)
    corpus = read_corpus(data)
    key = _key(corpus, data)
    prepared = load_or_build(
        key,
        read=_open,
        write=functools.partial(_write, corpus=corpus, data=data),
        cache=cache,
    )
    prepared = dataclasses.replace(prepared, description=_description(corpus, prepared))
    if found:
        sources.record(cache / key, found, prepared.description)
    return prepared


def _source_files(data: DataConfig) -> list[Path]:
    """The files that `read_corpus` reads, and a tokenizer's own."""
    own = [Path(data.tokenizer)] if os.path.isfile(data.tokenizer) else []
    if data.path is None:
        root = Path(sysconfig.get_path("stdlib"))
        return [root / file for file in _library_files(root)] + own
    if os.path.isdir(data.path):
        return [data.path / file for file in _files(data.path)] + own
    return [data.path, *own]


def _key(corpus: Corpus, data: DataConfig) -> str:
    if data.tokenizer in ("bytes", "characters"):
        settings = data.tokenizer
    elif data.tokenizer == "bpe":
        settings = f"bpe {data.vocab_size}"
    else:
        settings = make_tokenizer(data.tokenizer, (), data.vocab_size).fingerprint
    return hashlib.sha256(f"{FORMAT} {corpus.sha256} {settings}".encode()).hexdigest()[:32]


def _make_tokenizer(corpus: Corpus, data: DataConfig) -> Tokenizer:
    sides = SIDES if data.tokenizer == "characters" else ("train",)
    return make_tokenizer(data.tokenizer, map(corpus.text, sides), data.vocab_size)


def _dtype(tokenizer: Tokenizer) -> str:
    return "<u2" if tokenizer.vocab_size < 2**16 else "<u4"


def _write(directory: Path, corpus: Corpus, data: DataConfig) -> None:
    directory.mkdir()
    save_tokenizer(_make_tokenizer(corpus, data), directory / "tokenizer.json")
    tokenizer = load_tokenizer(directory / "tokenizer.json")  # as every later run finds it
    content: dict[str, Any] = {"corpus": corpus.sha256, "lost": 0.0}
    if data.tokenizer not in BUILT_IN:
        content["lost"] = lost_share(tokenizer, map(corpus.text, SIDES))
    for side in SIDES:
        tokens = tokenizer.encode(corpus.text(side)).astype(_dtype(tokenizer))
        if not tokens.size:
            raise UserError(f"the {side} text of {corpus.name} has no tokens: give a longer text")
        with atomic_write(directory / f"{side}.bin") as file:
            file.write(tokens.data)
        content[f"{side}_bytes"] = corpus.num_bytes(side)
    manifest.write(directory, content)


def _open(directory: Path) -> PreparedData | None:
    """The preparation in `directory`, if it is there, complete and undamaged."""
    try:
        content = manifest.verify(directory, parts=())
    except manifest.CorruptionError:
        return None
    tokenizer = load_tokenizer(directory / "tokenizer.json")
    train, val = (
        np.memmap(directory / f"{side}.bin", dtype=_dtype(tokenizer), mode="r") for side in SIDES
    )
    return PreparedData(
        tokenizer=tokenizer,
        train=train,
        val=val,
        train_bytes=content["train_bytes"],
        val_bytes=content["val_bytes"],
        fingerprint=fingerprint_of(content["corpus"], tokenizer),
        lost=content["lost"],
        description="",
    )


def _description(corpus: Corpus, prepared: PreparedData) -> str:
    num_bytes = (prepared.train_bytes or 0) + (prepared.val_bytes or 0)
    num_tokens = prepared.num_train_tokens + prepared.num_val_tokens
    left_out = ""
    if corpus.num_skipped:
        left_out = f" ({corpus.num_skipped} files left out: hidden, empty or no UTF-8 text)"
    return (
        f"{corpus.name}: {num_bytes / 1e6:.1f} MB, "
        f"documents {len(corpus.train):,} + {len(corpus.val):,} (training + validation){left_out}, "
        f"{num_tokens:,} tokens, corpus {corpus.sha256[:12]}"
        f"{loss_note(prepared.lost)}"
    )
