"""Decoding: how a token or a whole translation is chosen."""

import dataclasses
from typing import Annotated

from jaxformer.config.checks import (
    Bounds,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    check_fields,
)
from jaxformer.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How the next token is drawn from the logits; the filters apply in the order of the fields."""

    repetition_penalty: PositiveFloat = 1.0
    """Weakens tokens that the text already holds; 1 leaves them alone, 1.2 is the usual value."""
    temperature: NonNegativeFloat = 1.0
    """Divides the logits: below 1 sharper, above 1 flatter; 0 always takes the likeliest token."""
    top_k: PositiveInt | None = None
    """Draw from the K likeliest tokens only."""
    top_p: Annotated[float, Bounds(0, 1, low_open=True)] | None = None
    """Draw from the fewest tokens whose probabilities sum to at least P."""
    min_p: Annotated[float, Bounds(0, 1)] | None = None
    """Draw from tokens at least P times as probable as the likeliest."""

    def __post_init__(self) -> None:
        check_fields(self)
        if 0 < self.temperature < 1e-6:
            raise UserError(
                f"temperature {self.temperature} is too close to 0: choose 0 for the likeliest "
                "token, or a number of at least 1e-06"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class BeamConfig:
    """Beam search (Vaswani et al. 2017, section 6.1; Wu et al. 2016, section 7)."""

    beam: PositiveInt = 4
    """Hypotheses that are followed at once; 1 is greedy decoding."""
    length_penalty: Annotated[float, Bounds(0, 10)] = 0.6
    """alpha: scores are log p / ((5 + length) / 6)^alpha; 0 leaves them alone."""
    n_best: PositiveInt = 1
    """Finished hypotheses that are returned, at most the beam."""
    extra_length: PositiveInt = 50
    """The greatest length of a translation, in tokens beyond the length of its source."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.n_best > self.beam:
            raise UserError(
                f"n-best {self.n_best} is more than the beam {self.beam}: choose a wider --beam"
            )
