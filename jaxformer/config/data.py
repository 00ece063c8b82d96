"""Data: the text a run learns from and how it becomes tokens."""

import dataclasses
from pathlib import Path
from typing import Literal

from jaxformer.config.checks import require_one_of, require_positive, require_vocabulary
from jaxformer.errors import UserError

NUM_BYTES = 256


def _tokenizer_size(tokenizer: str, vocab_size: int) -> int | None:
    """Tokens of a tokenizer: as many as a BPE may learn, or 256 bytes; else only the text knows."""
    return {"bytes": NUM_BYTES, "bpe": vocab_size}.get(tokenizer)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The text a run learns from and how it becomes tokens."""

    path: Path | None = None
    """A text file, or a directory of them; by default the running Python's standard library."""
    tokenizer: str = "bpe"
    """`bytes`, `characters`, `bpe` (trained on the text) or the path of a tokenizer.json."""
    vocab_size: int = 4096
    """Vocabulary of a trained `bpe` tokenizer; the other kinds bring their own."""
    val_fraction: float = 0.1
    """Share of the text kept for validation."""

    def __post_init__(self) -> None:
        if not 0.0 < self.val_fraction < 1.0:
            raise UserError(
                f"data.val-fraction {self.val_fraction} leaves no text on one side: "
                "choose a share between 0 and 1, such as 0.1"
            )
        require_vocabulary("data.vocab-size", self.vocab_size)

    @property
    def tokenizer_size(self) -> int | None:
        """Tokens of the tokenizer; None if only the text knows."""
        return _tokenizer_size(self.tokenizer, self.vocab_size)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextPairsConfig:
    """Two plain text files, line i of one the translation of line i of the other."""

    source: Path | None = None
    """Text to translate from, one sentence a line."""
    target: Path | None = None
    """Its translation, line by line."""
    val_source: Path | None = None
    """Sentences to validate on; by default some of the others are set aside."""
    val_target: Path | None = None
    """Their translation."""
    val_fraction: float = 0.02
    """Share of the pairs set aside where no validation files are given."""
    tokenizer: str = "bpe"
    """`bytes`, `characters`, `bpe` (trained on both sides) or the path of a tokenizer.json."""
    vocab_size: int = 8000
    """Vocabulary of a trained `bpe` tokenizer, shared by both languages."""
    max_tokens: int = 100
    """Pairs with a longer side are dropped from training."""
    max_ratio: float = 3.0
    """Pairs whose one side has more than so many times the tokens of the other are dropped."""

    def __post_init__(self) -> None:
        if not 0.0 < self.val_fraction < 1.0:
            raise UserError(
                f"data.val-fraction {self.val_fraction} leaves no pairs on one side: "
                "choose a share between 0 and 1, such as 0.02"
            )
        require_vocabulary("data.vocab-size", self.vocab_size)
        require_positive("data.max-tokens", self.max_tokens)
        require_positive("data.max-ratio", self.max_ratio)

    @property
    def tokenizer_size(self) -> int | None:
        """Tokens of the tokenizer; None if only the texts know."""
        return _tokenizer_size(self.tokenizer, self.vocab_size)

    @property
    def longest(self) -> int | None:
        """Most tokens of a side that is learned from."""
        return self.max_tokens


Language = Literal["da", "de", "en", "es", "fi", "fr", "id", "it", "nl", "pt", "ro"]
LARGEST_NUMBER = 9_999_999


@dataclasses.dataclass(frozen=True, kw_only=True)
class NumbersConfig:
    """Numbers and dates in words, from one language into another."""

    source_language: Language = "en"
    """Language of the source."""
    target_language: Language = "de"
    """Language of the target."""
    max_number: int = 999_999
    """Largest number."""
    num_pairs: int = 60_000
    """Pairs to learn from, numbers and dates together."""
    num_val_pairs: int = 2000
    """Held-out pairs; none of their numbers and dates is learned from."""
    tokenizer: str = "bpe"
    """`bytes`, `characters`, `bpe` (trained on both sides) or the path of a tokenizer.json."""
    vocab_size: int = 512
    """Vocabulary of a trained `bpe` tokenizer, shared by both languages."""

    def __post_init__(self) -> None:
        for name in ("source_language", "target_language"):
            require_one_of(f"data.{name.replace('_', '-')}", getattr(self, name), Language)
        if self.source_language == self.target_language:
            raise UserError(
                f"data.source-language and data.target-language are both {self.source_language}: "
                "choose two"
            )
        require_vocabulary("data.vocab-size", self.vocab_size)
        for name in ("max_number", "num_pairs", "num_val_pairs"):
            require_positive(f"data.{name.replace('_', '-')}", getattr(self, name))
        if self.max_number > LARGEST_NUMBER:
            raise UserError(
                f"data.max-number {self.max_number} is too large: "
                f"choose one of at most {LARGEST_NUMBER}"
            )

    @property
    def tokenizer_size(self) -> int | None:
        """Tokens of the tokenizer; None if only the texts know."""
        return _tokenizer_size(self.tokenizer, self.vocab_size)

    @property
    def longest(self) -> int | None:
        """Most tokens of a side: there is no limit."""
        return None


NUM_LETTERS = 52


@dataclasses.dataclass(frozen=True, kw_only=True)
class CopyConfig:
    """Random strings; the target is the source, or the source from its end to its beginning."""

    reverse: bool = False
    """Reverse the string rather than copy it."""
    num_symbols: int = 26
    """Letters that strings are made of."""
    max_length: int = 16
    """Longest string; the shortest has one letter."""
    num_pairs: int = 20_000
    """Strings to learn from."""
    num_val_pairs: int = 1000
    """Held-out strings."""

    def __post_init__(self) -> None:
        for name in ("num_symbols", "max_length", "num_pairs", "num_val_pairs"):
            require_positive(f"data.{name.replace('_', '-')}", getattr(self, name))
        if self.max_length > 1000:
            raise UserError(
                f"data.max-length {self.max_length} is too long a string: choose at most 1000"
            )
        if self.num_symbols > NUM_LETTERS:
            raise UserError(
                f"data.num-symbols {self.num_symbols} is too large: "
                f"there are {NUM_LETTERS} letters, small and capital"
            )

    @property
    def tokenizer_size(self) -> int:
        """One token per letter."""
        return self.num_symbols

    @property
    def longest(self) -> int | None:
        """Most tokens of a side."""
        return self.max_length
