"""Tokenizers: text to integer ids and back.

Four kinds with one interface:

    ByteTokenizer   an id is a byte of the UTF-8 text; 256 ids, encodes every text
    CharTokenizer   an id is the rank of a character in the sorted alphabet of a text
    BPETokenizer    byte-level byte-pair encoding as in GPT-2, trained here, or any other tokenizer
                    that a tokenizer.json of the `tokenizers` library describes
    IdTokenizer     the text of a token is its number, for data that are tokens already

Sources: Sennrich et al. 2016, section 3.2 (byte-pair encoding); Radford et al. 2019, section 2.2
(byte level).
"""

import abc
import contextlib
import hashlib
import itertools
import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import ArrayLike

from jaxformer.atomic import atomic_write
from jaxformer.config.data import NUM_BYTES
from jaxformer.errors import UserError

PIECE_LENGTH = 1 << 16  # characters given to one call of the library's byte-pair encoder
PIECES_AT_ONCE = 64  # the library holds over 100 bytes per token until a call returns
TEXTS_AT_ONCE = 4096
BUILT_IN = ("bytes", "characters", "bpe")
"""Kinds of tokenizers that are made here; decoding gives back every text that they encode."""
LONGEST_WORD = 1024
"""Characters of a word that byte-pair encoding learns from as a whole. The library's training takes
time quadratic in the length of a word."""


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


class ByteTokenizer(Tokenizer):
    """Each byte of the UTF-8 text is a token."""

    vocab_size = NUM_BYTES

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(_encoded(text, "utf-8"), dtype=np.uint8).astype(np.int32)

    def _decode(self, ids: np.ndarray) -> str:
        return ids.astype(np.uint8).tobytes().decode("utf-8", errors="replace")

    def to_json(self) -> str:
        return json.dumps({"kind": "bytes"})


class CharTokenizer(Tokenizer):
    """Each character is a token; its id is its rank in the alphabet, as in char-rnn and nanoGPT."""

    def __init__(self, characters: str):
        self.characters = characters
        self.vocab_size = len(characters)
        self._code_points = np.frombuffer(_encoded(characters, "utf-32-le"), dtype="<u4")
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
        ids = self._ids[np.frombuffer(_encoded(text, "utf-32-le"), dtype="<u4")]
        unknown = ids < 0
        if unknown.any():
            position = int(unknown.argmax())
            raise UserError(
                f"unknown character {_named(text[position])} at position {position}: this "
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


class BPETokenizer(Tokenizer):
    """A tokenizer of the `tokenizers` library; `train` trains a byte-level BPE.

    Special tokens are ordinary text: `encode` adds none and `decode` removes none. A tokenizer from
    elsewhere follows its own rules: how it treats unknown characters, and whether decoding restores
    the text exactly. Truncation and padding are disabled. Unused ids below the highest id decode to
    the empty string.
    """

    def __init__(self, library: tokenizers.Tokenizer):
        library.no_truncation()
        library.no_padding()
        self._library = library
        vocabulary = library.get_vocab(with_added_tokens=True)
        if not vocabulary:
            raise UserError("the tokenizer has no tokens: train it on a text")
        self.vocab_size = max(vocabulary.values()) + 1
        rules = json.loads(library.to_str())
        self._splits_at_newlines = _splits_at_newlines(rules)
        # Byte fallback decodes a whole run of bytes as U+FFFD if its last byte is missing.
        if '"ByteFallback"' in json.dumps(rules["decoder"]):
            is_byte = re.compile(r"<0x[0-9A-F]{2}>").fullmatch
            self.open_ids = frozenset(i for token, i in vocabulary.items() if is_byte(token))

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> "BPETokenizer":
        """Train byte-level BPE: 256 bytes and the most frequent merges, V at most `vocab_size`.

        V is smaller where the text has fewer merges that occur twice. The same texts always give
        the same tokenizer. Words of more than `LONGEST_WORD` characters are learned from in parts.
        """
        library = _byte_level()
        pieces = (piece for text in texts for piece in pieces_of(text, PIECE_LENGTH))
        library.train_from_iterator(_with_cut_words(pieces), _trainer(vocab_size))
        return cls(library)

    @classmethod
    def train_on_sentences(cls, sentences: Iterable[str], vocab_size: int) -> "BPETokenizer":
        """Train BPE on sentences: their first word has the same ids as within a sentence.

        Encoding prepends a space to every text except the empty one, decoding strips it: a text
        that is encoded and decoded is unchanged. The rules are in tokenizer.json, so any program
        that reads it does the same.
        """
        library = _byte_level()
        library.normalizer = tokenizers.normalizers.Prepend(" ")
        library.decoder = tokenizers.decoders.Sequence(
            [tokenizers.decoders.ByteLevel(), tokenizers.decoders.Strip(" ", 1, 0)]
        )
        library.train_from_iterator(_with_cut_words(sentences), _trainer(vocab_size))
        return cls(library)

    @classmethod
    def from_file(cls, path: Path | str) -> "BPETokenizer":
        """Read any tokenizer.json of the `tokenizers` library; UserError for any other file."""
        text = _read(path)
        with _refusing(lambda reason: _corrupt(path, reason)):
            return cls(tokenizers.Tokenizer.from_str(text))

    def encode(self, text: str) -> np.ndarray:
        _encoded(text, "utf-8")
        pieces = pieces_of(text, PIECE_LENGTH) if self._splits_at_newlines else [text]
        return np.concatenate(list(self._encode_batches(pieces, PIECES_AT_ONCE)))

    def encode_each(self, texts: Iterable[str]) -> Iterator[np.ndarray]:
        return self._encode_batches(map(_checked, texts), TEXTS_AT_ONCE)

    def _encode_batches(self, texts: Iterable[str], size: int) -> Iterator[np.ndarray]:
        texts = iter(texts)
        while batch := list(itertools.islice(texts, size)):
            with _refusing(lambda why: UserError(f"the tokenizer cannot encode this text: {why}")):
                encodings = self._library.encode_batch_fast(batch, add_special_tokens=False)
            for encoding in encodings:
                yield np.asarray(encoding.ids, dtype=np.int32)

    def _decode(self, ids: np.ndarray) -> str:
        with _refusing(lambda why: UserError(f"the tokenizer cannot decode these tokens: {why}")):
            return self._library.decode(ids.tolist(), skip_special_tokens=False)

    def to_json(self) -> str:
        return self._library.to_str()


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
    text = _read(path)
    try:
        rules: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _corrupt(path, str(error)) from error
    match rules:
        case {"kind": "bytes"}:
            return ByteTokenizer()
        case {"kind": "ids", "vocab_size": int(vocab_size)}:
            return IdTokenizer(vocab_size)
        case {"kind": "characters", "characters": str(characters)}:
            try:
                return CharTokenizer(characters)
            except UserError as error:
                raise _corrupt(path, str(error)) from error
    return BPETokenizer.from_file(path)


@contextlib.contextmanager
def _refusing(refusal: Callable[[str], UserError]) -> Iterator[None]:
    """Turn an exception or a Rust panic of the library into the refusal."""
    try:
        yield
    except BaseException as error:
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise refusal(str(error)) from error
        raise


def _byte_level() -> tokenizers.Tokenizer:
    library = tokenizers.Tokenizer(tokenizers.models.BPE())
    library.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = tokenizers.decoders.ByteLevel()
    return library


def _trainer(vocab_size: int) -> tokenizers.trainers.BpeTrainer:
    if vocab_size < NUM_BYTES:
        raise UserError(
            f"data.vocab-size {vocab_size} is too small for byte-level BPE: "
            f"choose {NUM_BYTES} or more"
        )
    return tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        show_progress=False,
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
    )


def pieces_of(text: str, length: int) -> Iterator[str]:
    """Cut `text` into pieces of about `length` characters that byte-level BPE encodes as the whole.

    It cuts before a newline that follows a letter, a digit or a printable ASCII character: GPT-2's
    pattern never matches across such a place and does not look behind it.
    """
    start = 0
    for newline in re.finditer(r"(?<=[\w!-~])\n", text):
        if newline.start() - start >= length:
            yield text[start : newline.start()]
            start = newline.start()
    yield text[start:]


# Not Python's \s: the library takes separators U+001C to U+001F for punctuation.
_LONG_WORD = re.compile(
    rf"(?<![\S\x1c-\x1f])[\S\x1c-\x1f]{{{LONGEST_WORD + 1},}}"
    rf"|(?<![^\S\x1c-\x1f])[^\S\x1c-\x1f]{{{LONGEST_WORD + 1},}}"
)


def _with_cut_words(texts: Iterable[str]) -> Iterator[str]:
    """The texts, cut within runs of more than `LONGEST_WORD` characters without white space, or of
    white space alone.
    """
    for text in texts:
        start = 0
        for run in _LONG_WORD.finditer(text):
            for cut in range(run.start() + LONGEST_WORD, run.end(), LONGEST_WORD):
                yield text[start:cut]
                start = cut
        yield text[start:]


def _splits_at_newlines(rules: dict[str, Any]) -> bool:
    """Whether the pieces of `pieces_of` encode to the same ids as the whole text."""
    pre_tokenizer = rules["pre_tokenizer"] or {}
    return (
        rules["normalizer"] is None
        and pre_tokenizer.get("type") == "ByteLevel"
        and pre_tokenizer.get("use_regex") is True
        and pre_tokenizer.get("add_prefix_space") is False
        and not any(
            token["lstrip"] or token["rstrip"] or "\n" in token["content"]
            for token in rules["added_tokens"]
        )
    )


def _encoded(text: str, encoding: str) -> bytes:
    try:
        return text.encode(encoding)
    except UnicodeEncodeError as error:
        raise UserError(
            f"the text has {_named(text[error.start])} at position {error.start}, which is not a "
            "character: give valid Unicode text"
        ) from error


def _checked(text: str) -> str:
    _encoded(text, "utf-8")
    return text


def _named(character: str) -> str:
    return f"{character!a} ({unicodedata.name(character, f'U+{ord(character):04X}')})"


def _read(path: Path | str) -> str:
    try:
        return Path(path).read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): name another file") from error
    except UnicodeDecodeError as error:
        raise _corrupt(path, "it is not UTF-8 text") from error


def _corrupt(path: Path | str, reason: str) -> UserError:
    return UserError(f"{path} is not a tokenizer ({reason}): restore the file or make a new one")
