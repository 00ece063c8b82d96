"""Shards: token ids in files, as nanoGPT and llm.c prepare large corpora.

    nanoGPT   train.bin, val.bin                       token ids, little-endian uint16
    llm.c     NAME_train_000001.bin, NAME_val_000000.bin, ...   256 int32 before the same: the
              number 20240520, the version 1, the number of tokens, zeros

A directory with a file `*train*.bin` is one of shards. The files of a side, in the order of their
names, are one text; they are memory-mapped and never joined. What made the ids is not in the files:
a tokenizer.json may be named, else the text of a token is its number.
"""

import hashlib
import os
from pathlib import Path

import numpy as np
from jaxtyping import UInt

from jaxformer.config import DataConfig
from jaxformer.data import corpus
from jaxformer.data.corpus import PreparedData, fingerprint_of
from jaxformer.data.tokenizer import BUILT_IN, IdTokenizer, Tokenizer, load_tokenizer
from jaxformer.errors import UserError

MAGIC, VERSION, HEADER_BYTES = 20240520, 1, 1024
AT_ONCE = 1 << 24
"""Tokens that are read at a time to hash a shard."""


class TokenShards:
    """The tokens of several files, one after another, read in slices like one array."""

    def __init__(self, shards: list[np.ndarray]):
        self._shards = shards
        self._starts = np.cumsum([0, *map(len, shards)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, where: slice) -> UInt[np.ndarray, " L"]:
        start, stop, _ = where.indices(len(self))
        first = int(np.searchsorted(self._starts, start, "right")) - 1
        parts = []
        for shard, begin in zip(self._shards[first:], self._starts[first:-1], strict=True):
            if begin >= stop:
                break
            parts.append(shard[max(start - begin, 0) : stop - begin])
        return np.concatenate(parts) if parts else self._shards[0][:0]


def are_shards(path: Path | None) -> bool:
    """Whether data lie there as token ids rather than as text."""
    return path is not None and any(path.glob("*train*.bin"))


def prepare(data: DataConfig) -> PreparedData:
    """The tokens of a text (`corpus.prepare`), or those that a directory holds as shards.

    Raises:
        UserError: as either does.
    """
    return prepare_shards(data) if are_shards(data.path) else corpus.prepare(data)


def prepare_shards(data: DataConfig) -> PreparedData:
    """The shards in the directory `data.path`; every start reads them once, to hash them.

    Raises:
        UserError: a side has no file, a file is not as above, or has tokens that the tokenizer of
            `data.tokenizer` does not know.
    """
    assert data.path is not None
    sides = {side: _files(data.path, side) for side in ("train", "val")}
    shards = {side: [_open(file) for file in files] for side, files in sides.items()}
    tokens, largest = _scan(shards)
    tokenizer = _tokenizer(data, largest)
    train, val = (TokenShards(shards[side]) for side in ("train", "val"))
    known = "" if isinstance(tokenizer, IdTokenizer) else f" of {Path(data.tokenizer).name}"
    return PreparedData(
        tokenizer=tokenizer,
        train=train,
        val=val,
        train_bytes=None,
        val_bytes=None,
        fingerprint=fingerprint_of(tokens, tokenizer),
        lost=0.0,
        description=(
            f"{data.path.resolve().name}: {len(train):,} + {len(val):,} token ids{known} (training "
            f"+ validation) in {len(sides['train'])} + {len(sides['val'])} shards, the largest id "
            f"{largest:,}, hash {tokens[:12]}"
        ),
    )


def _files(path: Path, side: str) -> list[Path]:
    files = sorted(file for file in path.glob(f"*{side}*.bin") if file.is_file())
    if not files:
        raise UserError(
            f"data.path {path} has token shards for training but none for validation: add a file "
            f"*{side}*.bin"
        )
    return files


def _open(file: Path) -> UInt[np.ndarray, " L"]:
    """The tokens of a file, memory-mapped."""
    size = os.path.getsize(file)
    header = np.fromfile(file, "<i4", count=3)
    offset, count = 0, size // 2
    if len(header) == 3 and header[0] == MAGIC:
        offset, count = HEADER_BYTES, int(header[2])
        if header[1] != VERSION:
            raise UserError(
                f"{file} is a shard of version {header[1]}, not {VERSION}: convert it to uint16"
            )
    if not count or size != offset + 2 * count:
        raise UserError(
            f"{file} has {size:,} bytes, which are not {count:,} token ids of uint16 behind a "
            f"header of {offset:,} bytes: write it again"
        )
    return np.memmap(file, "<u2", "r", offset, (count,))


def _scan(shards: dict[str, list[np.ndarray]]) -> tuple[str, int]:
    """A hash of the tokens and their split, whatever their files, and the largest token."""
    digest, largest = hashlib.sha256(), 0
    for side, arrays in shards.items():
        digest.update(f"{side} {sum(map(len, arrays))}".encode())
        for array in arrays:
            for start in range(0, len(array), AT_ONCE):
                part = array[start : start + AT_ONCE]
                digest.update(part.data)
                largest = max(largest, int(part.max()))
    return digest.hexdigest(), largest


def _tokenizer(data: DataConfig, largest: int) -> Tokenizer:
    if data.tokenizer in BUILT_IN:
        return IdTokenizer(largest + 1)
    if not os.path.isfile(data.tokenizer):
        raise UserError(
            f"data.tokenizer {data.tokenizer} is not a file: name the tokenizer.json that made the "
            "shards, or leave it out to train on token ids alone"
        )
    tokenizer = load_tokenizer(data.tokenizer)
    if largest >= tokenizer.vocab_size:
        raise UserError(
            f"data.tokenizer {data.tokenizer} has {tokenizer.vocab_size:,} tokens, but the shards "
            f"of {data.path} have the id {largest:,}: name the tokenizer that made them"
        )
    return tokenizer
