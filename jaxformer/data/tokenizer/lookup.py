"""Tokenizers that look each token up: bytes, characters, and ids of tokens already made."""

import json
from collections.abc import Iterable

import numpy as np

from jaxformer.config.data import NUM_BYTES
from jaxformer.data.tokenizer.base import Tokenizer, encode_text, named
from jaxformer.errors import UserError


class ByteTokenizer(Tokenizer):
    """Each byte of the UTF-8 text is a token."""

    vocab_size = NUM_BYTES

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(encode_text(text, "utf-8"), dtype=np.uint8).astype(np.int32)

    def _decode(self, ids: np.ndarray) -> str:
        return ids.astype(np.uint8).tobytes().decode("utf-8", errors="replace")

    def to_json(self) -> str:
        return json.dumps({"kind": "bytes"})


class CharTokenizer(Tokenizer):
    """Each character is a token; its id is its rank in the alphabet, as in char-rnn and nanoGPT."""

    def __init__(self, characters: str):
        self.characters = characters
        self.vocab_size = len(characters)
        self._code_points = np.frombuffer(encode_text(characters, "utf-32-le"), dtype="<u4")
        if not characters or not np.all(self._code_points[:-1] < self._code_points[1:]):
            raise UserError(
                "the alphabet of a character tokenizer is empty, unsorted or repeats a character: "
                "take it from a text"
            )
        self._ids = np.full(0x110000, -1, dtype=np.int32)  # by code point; -1 is unknown
        self._ids[self._code_points] = np.arange(self.vocab_size, dtype=np.int32)

    @classmethod
    def from_texts(cls, texts: Iterable[str]) -> "CharTokenizer":
        """The tokenizer whose alphabet is every character of `texts`."""
        return cls("".join(sorted(set[str]().union(*texts))))

    def encode(self, text: str) -> np.ndarray:
        ids = self._ids[np.frombuffer(encode_text(text, "utf-32-le"), dtype="<u4")]
        unknown = ids < 0
        if unknown.any():
            position = int(unknown.argmax())
            raise UserError(
                f"unknown character {named(text[position])} at position {position}: this "
                f"tokenizer has the {self.vocab_size:,} characters of the text it was made from: "
                "leave it out, or train with --data.tokenizer bytes or bpe, which know every text"
            )
        return ids

    def _decode(self, ids: np.ndarray) -> str:
        return self._code_points[ids].tobytes().decode("utf-32-le")

    def to_json(self) -> str:
        return json.dumps({"kind": "characters", "characters": self.characters})


class IdTokenizer(Tokenizer):
    """The text of a token is its number and a space, where nobody knows what made the tokens."""

    def __init__(self, vocab_size: int):
        self.vocab_size = vocab_size

    def encode(self, text: str) -> np.ndarray:
        words = text.split()
        ids = [int(word) for word in words if word.isascii() and word.isdecimal()]
        if len(ids) < max(1, len(words)) or max(ids) >= self.vocab_size:
            raise UserError(
                f"the text {text[:40]!r} is not made of token ids, and nothing else is known here: "
                f"give numbers from 0 to {self.vocab_size - 1} with spaces between, or train with "
                "--data.tokenizer tokenizer.json, of the tokenizer that made the shards"
            )
        return np.asarray(ids, dtype=np.int32)

    def _decode(self, ids: np.ndarray) -> str:
        return "".join(f"{number} " for number in ids.tolist())

    def to_json(self) -> str:
        return json.dumps({"kind": "ids", "vocab_size": self.vocab_size})
