"""Two models on the same tokens: the worst difference of log-probabilities, the first other choice.

One side continues each prompt, greedily; then both score the whole text. At every place their
log-probabilities of all tokens are compared, and the tokens that they find the likeliest there. So
a choice between two tokens that are nearly equal spoils one place, and not all that follow.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxformer.errors import UserError
from jaxformer.exchange.sides import CAUSAL, MASKED, PAIRS, Row, RunSide, Side, TransformersSide

BOUND = 1e-3
"""Of the difference of two log-probabilities, in nats: two tools in float32 stay far below it."""
NUM_ROWS, LENGTH = 4, 32
"""Rows of drawn tokens, and the length of each, where no prompts are given."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What two sides have in common."""

    tokens: int
    """Places at which both sides were asked."""
    equal_tokens: int
    """Places at which they find the same token the likeliest."""
    worst: float
    """Largest |log p - log p'| of any token at any place, in nats."""
    first_difference: dict[str, Any] | None
    """Where they first find different tokens the likeliest, or encode a prompt otherwise."""
    bound: float = BOUND

    @property
    def ok(self) -> bool:
        """Whether all tokens are equal, and the log-probabilities within the bound."""
        return self.first_difference is None and self.worst <= self.bound

    def as_json(self) -> dict[str, Any]:
        """The values of `--json`."""
        return {
            "ok": self.ok,
            "tokens": self.tokens,
            "equal_tokens": self.equal_tokens,
            "worst_log_prob_difference": self.worst,
            "first_difference": self.first_difference,
        }

    def __str__(self) -> str:
        where = ""
        if self.first_difference is not None:
            where = "; the first other one: " + ", ".join(
                f"{key} {value}" for key, value in self.first_difference.items()
            )
        return (
            f"{self.equal_tokens:,} of {self.tokens:,} tokens equal{where}; worst difference of "
            f"log-probabilities {self.worst:.2e} nats (bound {self.bound:.0e})"
        )


def compare(
    a: Side, b: Side, rows: Sequence[Row], new_tokens: int, bound: float = BOUND
) -> Comparison:
    """Compare two sides on rows of tokens that the first continues.

    Raises:
        UserError: they are models of two kinds, or a row is longer than a context.
    """
    require_alike(a, b)
    tokens = equal = 0
    worst, first = 0.0, None
    size, longest = min(a.vocab_size, b.vocab_size), min(a.context_length, b.context_length)
    for number, row in enumerate(rows):
        read = row.tokens if row.source is None else row.source
        if not 0 < len(read) <= longest:
            raise UserError(
                f"prompt {number + 1} has {len(read)} tokens, and the context {longest}: give "
                "another one"
            )
        if a.task != MASKED:
            row = a.extended(row, min(new_tokens, longest - len(row.tokens)))
        ours, theirs = (side.log_probs(row)[:, :size] for side in (a, b))
        worst = max(worst, _difference(ours, theirs))
        choices = ours.argmax(-1), theirs.argmax(-1)
        same = choices[0] == choices[1]
        tokens, equal = tokens + len(same), equal + int(same.sum())
        if first is None and not same.all():
            place = int(np.argmin(same))
            first = {
                "prompt": number,
                "position": place,
                "a": int(choices[0][place]),
                "b": int(choices[1][place]),
            }
    return Comparison(tokens, equal, worst, first, bound)


def require_alike(a: Side, b: Side) -> None:
    """Refuse models of two kinds."""
    if a.task != b.task:
        raise UserError(f"{a.name} is a {a.task} and {b.name} a {b.task}: compare two of one kind")


def _difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The largest difference, infinite where one side has no number."""
    found = np.abs(ours.astype(np.float64) - theirs.astype(np.float64))
    return float(found.max()) if np.isfinite(found).all() else float("inf")


def text_rows(a: Side, b: Side, texts: Sequence[str]) -> tuple[list[Row], dict[str, Any] | None]:
    """The tokens of texts, and where the two tokenizers first differ, if they do."""
    start = start_of(a, b) if a.task == PAIRS else None
    rows, first = [], None
    for number, text in enumerate(texts):
        ours, theirs = a.encode(text), b.encode(text)
        if first is None and not np.array_equal(ours, theirs):
            length = min(len(ours), len(theirs))
            unlike = np.flatnonzero(ours[:length] != theirs[:length])
            place = int(unlike[0]) if len(unlike) else length
            first = {"prompt": number, "position": place, "a": "encoded otherwise", "b": text}
        rows.append(Row(ours) if start is None else Row(np.array([start], np.int32), ours))
    return rows, first


def start_of(*sides: Side) -> int | None:
    """The token that a Transformer's targets begin with; None for other models.

    Raises:
        UserError: two sides begin with two tokens.
    """
    found = {start for side in sides if (start := _start(side)) is not None}
    if len(found) > 1:
        raise UserError(f"the sides begin targets with two tokens, {found}: they are two models")
    return next(iter(found), None)


def _start(side: Side) -> int | None:
    if side.task != PAIRS:
        return None
    if isinstance(side, RunSide):
        return side.run.specials.start
    return side.start if isinstance(side, TransformersSide) else None


__all__ = ["BOUND", "CAUSAL", "Comparison", "compare", "start_of", "text_rows"]
