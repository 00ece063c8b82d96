"""Cleaning of parallel text: which training pairs are dropped, with a count for each reason.

A pair is dropped for the first reason that applies, in the order of the fields of `Cleaning`. The
rules about texts run before the tokenizer is trained, the rules about lengths after it. The latter
are those of clean-corpus-n in the Moses toolkit (Koehn et al. 2007), with tokens instead of words.
"""

import dataclasses
from collections.abc import Iterable

import numpy as np
from jaxtyping import Bool, Int

from jaxformer.data.pairs import Pair


@dataclasses.dataclass(frozen=True)
class Cleaning:
    """The number of pairs before cleaning, and the number dropped for each reason."""

    num_pairs: int
    empty: int = 0
    """A side has no text."""
    held_out: int = 0
    """The same pair is among the validation pairs."""
    repeated: int = 0
    """The same pair occurred earlier."""
    too_long: int = 0
    """A side has too many tokens."""
    unequal: int = 0
    """The ratio of the lengths is too large."""

    @property
    def num_dropped(self) -> int:
        return self.empty + self.repeated + self.held_out + self.too_long + self.unequal

    def __str__(self) -> str:
        counts = {
            "empty": self.empty,
            "also in validation": self.held_out,
            "repeated": self.repeated,
            "too long": self.too_long,
            "too unequal": self.unequal,
        }
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in counts.items() if count)
        return f"{self.num_dropped:,} of {self.num_pairs:,} pairs dropped" + (
            f" ({reasons})" if reasons else ""
        )


def clean_texts(
    pairs: Iterable[Pair], held_out: Iterable[Pair] = ()
) -> tuple[list[Pair], Cleaning]:
    """The pairs with text on both sides that are not held out, each once, in order."""
    forbidden = frozenset(held_out)
    kept: dict[Pair, None] = {}
    num_pairs = num_empty = num_repeated = num_held_out = 0
    for pair in pairs:
        num_pairs += 1
        if not all(pair):
            num_empty += 1
        elif pair in forbidden:
            num_held_out += 1
        elif pair in kept:
            num_repeated += 1
        else:
            kept[pair] = None
    return list(kept), Cleaning(
        num_pairs, empty=num_empty, repeated=num_repeated, held_out=num_held_out
    )


def length_faults(
    sources: Int[np.ndarray, " P"],
    targets: Int[np.ndarray, " P"],
    max_tokens: float,
    max_ratio: float,
) -> tuple[Bool[np.ndarray, " P"], Bool[np.ndarray, " P"]]:
    """Masks of the pairs that are too long, and of the others that are too unequal, in tokens.

    Too long: a side has more than `max_tokens`. Too unequal: the longer side has more than
    `max_ratio` times the tokens of the shorter one.
    """
    longer, shorter = np.maximum(sources, targets), np.minimum(sources, targets)
    too_long = longer > max_tokens
    return too_long, ~too_long & (longer > max_ratio * shorter)
