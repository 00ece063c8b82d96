"""Byte-pair encoding, trained here or read from a tokenizer.json, by the `tokenizers` library.

Sources: Sennrich et al. 2016, section 3.2 (byte-pair encoding); Radford et al. 2019, section 2.2
(byte level).
"""

import contextlib
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from jaxformer.config.data import NUM_BYTES
from jaxformer.data.tokenizer.base import Tokenizer, corrupt, encode_text, read
from jaxformer.errors import UserError

PIECE_LENGTH = 1 << 16  # characters given to one call of the library's byte-pair encoder
PIECES_AT_ONCE = 64  # the library holds over 100 bytes per token until a call returns
TEXTS_AT_ONCE = 4096
LONGEST_WORD = 1024
"""Characters of a word that byte-pair encoding learns from as a whole. The library's training takes
time quadratic in the length of a word."""


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
        text = read(path)
        with _refusing(lambda reason: corrupt(path, reason)):
            return cls(tokenizers.Tokenizer.from_str(text))

    def encode(self, text: str) -> np.ndarray:
        encode_text(text, "utf-8")
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

    def token_id(self, token: str) -> int | None:
        """The id of a token by its text in the vocabulary; None if there is none."""
        return self._library.token_to_id(token)

    def to_json(self) -> str:
        return self._library.to_str()


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


def _checked(text: str) -> str:
    encode_text(text, "utf-8")
    return text
