"""The batch that the data room makes and a train step takes, and the tokens that are no text."""

import dataclasses
from typing import Any, NamedTuple

from jaxtyping import Bool, Int


class Batch(NamedTuple):
    """Numpy arrays as the data room makes them, jax arrays once they are placed on a mesh."""

    inputs: Int[Any, "B L"]
    """Token ids, int32."""
    targets: Int[Any, "B L"]
    """The token after each input, int32."""
    mask: Bool[Any, "B L"]
    """True where the target counts in the loss."""


@dataclasses.dataclass(frozen=True)
class Specials:
    """Token ids of a translation model that stand for no text: V, V + 1 and V + 2 of a tokenizer
    with V tokens, so that the model's vocabulary has V + 3."""

    padding: int
    """Fills a row that is shorter than its batch."""
    start: int
    """What the decoder reads before the first token of the target."""
    end: int
    """The last token of a target."""
