"""The batches that the data room makes and a train step takes, one kind for each objective.

Numpy arrays as the data room makes them, jax arrays once they are placed on a mesh.
"""

import dataclasses
from typing import Any, NamedTuple

from jaxtyping import Bool, Int


class Batch(NamedTuple):
    """Text for a GPT."""

    inputs: Int[Any, "B L"]
    """Token ids, int32."""
    targets: Int[Any, "B L"]
    """The token after each input, int32."""
    mask: Bool[Any, "B L"]
    """True where the target counts in the loss."""


class PairBatch(NamedTuple):
    """Pairs of texts for an encoder-decoder; padding fills rows up to the longest of a side."""

    source: Int[Any, "B M"]
    """Token ids of the texts to translate, int32."""
    source_valid: Bool[Any, "B M"]
    """True where the source has a token, False where it has padding."""
    inputs: Int[Any, "B L"]
    """The start token, then the target, int32: what the decoder reads."""
    targets: Int[Any, "B L"]
    """The target, then the end token, int32: the token after each input."""
    mask: Bool[Any, "B L"]
    """True where the target counts in the loss, and so where the decoder reads a token."""


class MaskedBatch(NamedTuple):
    """Texts of which some tokens are hidden, for BERT."""

    tokens: Int[Any, "B L"]
    """Token ids with some replaced, int32."""
    segments: Int[Any, "B L"]
    """The kind of segment of each token, int32."""
    valid: Bool[Any, "B L"]
    """True where there is a token, False where there is padding."""
    targets: Int[Any, "B L"]
    """The tokens as they were, int32."""
    mask: Bool[Any, "B L"]
    """True at the replaced tokens, the ones that count in the loss."""


@dataclasses.dataclass(frozen=True)
class SpecialTokens:
    """Token ids of a translation model that stand for no text: V, V + 1 and V + 2 of a tokenizer
    with V tokens, so that the model's vocabulary has V + 3."""

    padding: int
    """Fills a row that is shorter than its batch."""
    start: int
    """What the decoder reads before the first token of the target."""
    end: int
    """The last token of a target."""

    @classmethod
    def after(cls, vocab_size: int) -> "SpecialTokens":
        """The special tokens of a tokenizer with V tokens."""
        return cls(padding=vocab_size, start=vocab_size + 1, end=vocab_size + 2)
