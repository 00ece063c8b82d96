"""Decoding: sampling and beam search."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How the next token is drawn from the logits; the filters apply in the order of the fields."""

    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class BeamConfig:
    """Beam search."""

    beam: int = 4
    length_penalty: float = 0.6
    n_best: int = 1
    extra_length: int = 50
