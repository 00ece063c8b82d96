"""Decoding: how a token or a whole translation is chosen."""

import dataclasses
import math

from jaxformer.config.checks import require_positive
from jaxformer.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How the next token is drawn from the logits; the filters apply in the order of the fields."""

    repetition_penalty: float = 1.0
    """Weakens tokens that the text already holds; 1 leaves them alone, 1.2 is the usual value."""
    temperature: float = 1.0
    """Divides the logits: below 1 sharper, above 1 flatter; 0 always takes the likeliest token."""
    top_k: int | None = None
    """Draw from the K likeliest tokens only."""
    top_p: float | None = None
    """Draw from the fewest tokens whose probabilities sum to at least P."""
    min_p: float | None = None
    """Draw from tokens at least P times as probable as the likeliest."""

    def __post_init__(self) -> None:
        require_positive("repetition-penalty", self.repetition_penalty)
        if self.temperature != 0 and not 1e-6 <= self.temperature < math.inf:
            raise UserError(
                f"temperature {self.temperature} is out of range: choose 0 for the likeliest "
                "token, or a number of at least 1e-06"
            )
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"top-k {self.top_k} leaves no token: choose 1 or more")
        if self.top_p is not None and not 0.0 < self.top_p <= 1.0:
            raise UserError(f"top-p {self.top_p} is out of range: choose one above 0, at most 1")
        if self.min_p is not None and not 0.0 <= self.min_p <= 1.0:
            raise UserError(f"min-p {self.min_p} is out of range: choose a number from 0 to 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class BeamConfig:
    """Beam search (Vaswani et al. 2017, section 6.1; Wu et al. 2016, section 7)."""

    beam: int = 4
    """Hypotheses that are followed at once; 1 is greedy decoding."""
    length_penalty: float = 0.6
    """alpha: scores are log p / ((5 + length) / 6)^alpha; 0 leaves them alone."""
    n_best: int = 1
    """Finished hypotheses that are returned, at most the beam."""
    extra_length: int = 50
    """A translation ends at the latest so many tokens beyond the length of its source."""

    def __post_init__(self) -> None:
        require_positive("beam", self.beam)
        require_positive("n-best", self.n_best)
        require_positive("extra-length", self.extra_length)
        if not 0.0 <= self.length_penalty <= 10.0:
            raise UserError(
                f"length-penalty {self.length_penalty} is out of range: choose one from 0 to 10"
            )
        if self.n_best > self.beam:
            raise UserError(
                f"n-best {self.n_best} is more than the beam {self.beam}: choose a wider --beam"
            )
