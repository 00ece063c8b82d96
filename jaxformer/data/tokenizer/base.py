"""What every tokenizer is: a reversible map between text and ids; and how text is refused."""

import abc
import hashlib
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from jaxformer.errors import UserError


class Tokenizer(abc.ABC):
    """A reversible map between text and ids from 0 to V - 1."""

    vocab_size: int
    """V: the highest id plus one."""
    open_ids: frozenset[int] = frozenset()
    """Ids whose text is final only after a following id outside this set."""

    @abc.abstractmethod
    def encode(self, text: str) -> np.ndarray:
        """Ids of `text`, int32 of shape (L,), without special tokens.

        Raises UserError for text without ids: a lone surrogate, an unknown character.
        """

    def encode_each(self, texts: Iterable[str]) -> Iterator[np.ndarray]:
        """`encode` of each text, in order; batched where the library can."""
        return map(self.encode, texts)

    @abc.abstractmethod
    def to_json(self) -> str:
        """The whole tokenizer as JSON; `save_tokenizer` writes it, `fingerprint` hashes it."""

    @abc.abstractmethod
    def _decode(self, ids: np.ndarray) -> str:
        """Text of ids that are in range."""

    def decode(self, ids: ArrayLike) -> str:
        """Text of integer ids of shape (L,); bytes that are not UTF-8 become U+FFFD.

        Raises UserError for an id outside the vocabulary.
        """
        array = np.asarray(ids, dtype=np.int64)
        outside = array[(array < 0) | (array >= self.vocab_size)]
        if outside.size:
            raise UserError(
                f"token {outside[0]} is outside the vocabulary: "
                f"the ids of this tokenizer are 0 to {self.vocab_size - 1}"
            )
        return self._decode(array)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of `to_json`, in hexadecimal: equal for equal tokenizers."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


def encode_text(text: str, encoding: str) -> bytes:
    """The bytes of a text.

    Raises:
        UserError: it has a lone surrogate, which is no character.
    """
    try:
        return text.encode(encoding)
    except UnicodeEncodeError as error:
        raise UserError(
            f"the text has {named(text[error.start])} at position {error.start}, which is not a "
            "character: give valid Unicode text"
        ) from error


def named(character: str) -> str:
    """A character in a message: escaped if it is not ASCII, and its name."""
    return f"{character!a} ({unicodedata.name(character, f'U+{ord(character):04X}')})"


def read(path: Path | str) -> str:
    """The text of a tokenizer's file.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return Path(path).read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): name another file") from error
    except UnicodeDecodeError as error:
        raise corrupt(path, "it is not UTF-8 text") from error


def corrupt(path: Path | str, reason: str) -> UserError:
    """The refusal of a file."""
    return UserError(f"{path} is not a tokenizer ({reason}): restore the file or make a new one")
