"""The batches of a train step, one type per objective.

`jaxformer/data/` builds them from numpy arrays; sharded over a mesh they hold jax arrays.
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
    """Pairs of texts for an encoder-decoder; padding follows the tokens of each row."""

    source: Int[Any, "B M"]
    """Token ids of the texts to translate, int32."""
    source_valid: Bool[Any, "B M"]
    """True where the source has a token, False where it has padding."""
    inputs: Int[Any, "B L"]
    """The decoder's input, int32: the start token, then the target."""
    targets: Int[Any, "B L"]
    """The token after each input, int32: the target, then the end token."""
    mask: Bool[Any, "B L"]
    """True where the target counts in the loss, which is where `inputs` has a token."""


class MaskedBatch(NamedTuple):
    """Texts with some tokens masked, for BERT; padding follows the tokens of each row."""

    tokens: Int[Any, "B L"]
    """Token ids, some of them replaced, int32."""
    segments: Int[Any, "B L"]
    """The segment id of each token, int32."""
    valid: Bool[Any, "B L"]
    """True where the row has a token, False where it has padding."""
    targets: Int[Any, "B L"]
    """The original tokens, int32."""
    mask: Bool[Any, "B L"]
    """True at the tokens to predict, which count in the loss."""


@dataclasses.dataclass(frozen=True)
class SpecialTokens:
    """Padding, start and end of a translation model: V, V + 1 and V + 2 for a tokenizer with V
    tokens, so the vocabulary of the model has V + 3. Models from elsewhere have others, and some
    begin with padding."""

    padding: int
    """Fills rows that are shorter than the batch."""
    start: int
    """Precedes the first token of the target in the decoder's input."""
    end: int
    """The last token of a target."""

    @classmethod
    def after(cls, vocab_size: int) -> "SpecialTokens":
        """The special tokens of a tokenizer with V tokens."""
        return cls(padding=vocab_size, start=vocab_size + 1, end=vocab_size + 2)
