"""Data: the text a run learns from and how it becomes tokens."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

from jaxformer.config.checks import (
    Bounds,
    NaturalInt,
    PositiveFloat,
    PositiveInt,
    Split,
    VocabularySize,
    check_fields,
)
from jaxformer.errors import UserError

NUM_BYTES = 256
TOKENIZERS = ("bytes", "characters", "bpe")
"""What a tokenizer is called that needs no file; any other name is a path."""


def _tokenizer_size(tokenizer: str, vocab_size: int) -> int | None:
    """Tokens of a tokenizer: as many as a BPE may learn, or 256 bytes; else only the text knows."""
    return {"bytes": NUM_BYTES, "bpe": vocab_size}.get(tokenizer)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The text a run learns from and how it becomes tokens."""

    path: Path | None = None
    """A text file, or a directory of them, without the runs and the cache in it, or of token
    shards, train.bin and val.bin; where a recipe asks for none, by default the running Python's
    standard library."""
    tokenizer: str = "bpe"
    """`bytes`, `characters`, `bpe` (trained on the text) or the path of a tokenizer.json; of shards
    only the last has a meaning."""
    vocab_size: VocabularySize = 4096
    """Vocabulary of a trained `bpe` tokenizer; the other kinds bring their own."""
    val_fraction: Split = 0.1
    """Share of the text kept for validation; shards are divided already."""

    def __post_init__(self) -> None:
        check_fields(self, "data.")

    @property
    def tokenizer_size(self) -> int | None:
        """Tokens of the tokenizer; None if only the text knows."""
        return _tokenizer_size(self.tokenizer, self.vocab_size)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskedDataConfig(DataConfig):
    """The text of which some tokens are masked (Devlin et al. 2019, section 3.1)."""

    mask_share: Split = 0.15
    """Share of the tokens that are to be predicted: of these 80% become the mask token, 10% a
    random one, and 10% stay."""
    mask_token: NaturalInt | None = None
    """The mask token of a model from elsewhere; by default the one that follows the tokenizer's."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextPairsConfig:
    """Two plain text files, line i of one the translation of line i of the other."""

    source: Path | None = None
    """Text to translate from, one sentence per line."""
    target: Path | None = None
    """Its translation, line by line."""
    val_source: Path | None = None
    """Sentences to validate on; by default some of the others are set aside."""
    val_target: Path | None = None
    """Their translation."""
    val_fraction: Split = 0.02
    """Share of the pairs set aside where no validation files are given."""
    tokenizer: str = "bpe"
    """`bytes`, `characters`, `bpe` (trained on both sides) or the path of a tokenizer.json."""
    vocab_size: VocabularySize = 8000
    """Vocabulary of a trained `bpe` tokenizer, shared by both languages."""
    max_tokens: PositiveInt = 100
    """Pairs with a longer side are dropped from training."""
    max_ratio: PositiveFloat = 3.0
    """Pairs are dropped if one side has more than this many times the tokens of the other."""
    special_tokens: tuple[int, int, int] | None = None
    """Padding, start and end of a model from elsewhere, which are tokens of its tokenizer and whose
    sources end as targets do; by default three further tokens, and sources without an end."""

    def __post_init__(self) -> None:
        check_fields(self, "data.")

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
    max_number: Annotated[int, Bounds(1, LARGEST_NUMBER)] = 999_999
    """Largest number."""
    num_pairs: PositiveInt = 60_000
    """Pairs to learn from, numbers and dates together."""
    num_val_pairs: PositiveInt = 2000
    """Held-out pairs; none of their numbers and dates is learned from."""
    tokenizer: str = "bpe"
    """`bytes`, `characters`, `bpe` (trained on both sides) or the path of a tokenizer.json."""
    vocab_size: VocabularySize = 512
    """Vocabulary of a trained `bpe` tokenizer, shared by both languages."""

    def __post_init__(self) -> None:
        check_fields(self, "data.")
        if self.source_language == self.target_language:
            raise UserError(
                f"data.source-language and data.target-language are both {self.source_language}: "
                "choose two"
            )

    @property
    def tokenizer_size(self) -> int | None:
        """Tokens of the tokenizer; None if only the texts know."""
        return _tokenizer_size(self.tokenizer, self.vocab_size)

    @property
    def longest(self) -> int | None:
        """Most tokens of a side: there is no limit."""
        return None


@dataclasses.dataclass(frozen=True, kw_only=True)
class CopyConfig:
    """Random strings; the target is the source, or the source from its end to its beginning."""

    reverse: bool = False
    """Reverse the string rather than copy it."""
    num_symbols: Annotated[int, Bounds(1, 52)] = 26
    """Letters that strings are made of; there are 52, small and capital."""
    max_length: Annotated[int, Bounds(1, 1000)] = 16
    """Longest string; the shortest has one letter."""
    num_pairs: PositiveInt = 20_000
    """Strings to learn from."""
    num_val_pairs: PositiveInt = 1000
    """Held-out strings."""

    def __post_init__(self) -> None:
        check_fields(self, "data.")

    @property
    def tokenizer_size(self) -> int:
        """One token per letter."""
        return self.num_symbols

    @property
    def longest(self) -> int | None:
        """Most tokens of a side."""
        return self.max_length
