"""What every config refuses, in the words of its flags."""

import math
from typing import Any, get_args

from jaxformer.errors import UserError

LARGEST = 2**31 - 1
"""Sizes and counts are 32-bit integers."""
LARGEST_VOCABULARY = 2**20
"""Tokens of a trained tokenizer; published vocabularies have at most a quarter of it."""


def require_positive(name: str, value: float) -> None:
    """Refuse a number that is not above zero, or too large to count with, by its flag's name."""
    if not (value > 0 and math.isfinite(value)):
        raise UserError(f"{name} {value} is not positive: choose a number above 0")
    if value > LARGEST:
        raise UserError(f"{name} {value} is too large: choose one of at most {LARGEST}")


def require_vocabulary(name: str, size: int) -> None:
    """Refuse a vocabulary that no text needs and no trainer holds, by its flag's name."""
    if size > LARGEST_VOCABULARY:
        raise UserError(f"{name} {size} is too large: choose one of at most {LARGEST_VOCABULARY}")


def require_one_of(name: str, value: str, kinds: Any) -> None:
    """Refuse a word that is none of a Literal's, by its flag's name."""
    if value not in get_args(kinds):
        raise UserError(f"{name} {value} is unknown: choose one of {', '.join(get_args(kinds))}")


def require_probability(name: str, value: float) -> None:
    """Refuse what is no probability below 1, by its flag's name."""
    if not 0.0 <= value < 1.0:
        raise UserError(f"{name} {value} is not a probability below 1: choose one from 0 to 0.99")
