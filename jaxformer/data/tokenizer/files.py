"""Tokenizers made by name, written to files and read from them."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jaxformer.atomic import atomic_write
from jaxformer.data.tokenizer.base import Tokenizer, corrupt, read
from jaxformer.data.tokenizer.bpe import BPETokenizer
from jaxformer.data.tokenizer.lookup import ByteTokenizer, CharTokenizer, IdTokenizer
from jaxformer.errors import UserError

BUILT_IN = ("bytes", "characters", "bpe")
"""Kinds of tokenizers that are made here; decoding gives back every text that they encode."""


def make_tokenizer(kind: str, texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """The tokenizer that `DataConfig.tokenizer` names.

    `kind` is `bytes`, `characters` (alphabet of `texts`), `bpe` (trained on `texts`, at most
    `vocab_size` tokens) or the path of a tokenizer.json.
    """
    if kind == "bytes":
        return ByteTokenizer()
    if kind == "characters":
        return CharTokenizer.from_texts(texts)
    if kind == "bpe":
        return BPETokenizer.train(texts, vocab_size)
    if not Path(kind).exists():
        raise UserError(
            f"data.tokenizer {kind} is not a file: "
            "choose bytes, characters, bpe or the path of a tokenizer.json"
        )
    return load_tokenizer(kind)


def save_tokenizer(tokenizer: Tokenizer, path: Path | str) -> None:
    """Write `tokenizer` to the file `path`, atomically.

    BPE is written in the format of the `tokenizers` library, the other kinds as a JSON object
    that names the kind.
    """
    try:
        with atomic_write(Path(path)) as file:
            file.write(tokenizer.to_json().encode())
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}): free some space") from error


def load_tokenizer(path: Path | str) -> Tokenizer:
    """Read what `save_tokenizer` wrote, or any tokenizer.json of the `tokenizers` library."""
    text = read(path)
    try:
        rules: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise corrupt(path, str(error)) from error
    match rules:
        case {"kind": "bytes"}:
            return ByteTokenizer()
        case {"kind": "ids", "vocab_size": int(vocab_size)}:
            return IdTokenizer(vocab_size)
        case {"kind": "characters", "characters": str(characters)}:
            try:
                return CharTokenizer(characters)
            except UserError as error:
                raise corrupt(path, str(error)) from error
    return BPETokenizer.from_file(path)
