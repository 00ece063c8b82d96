"""What every config refuses, in the words of its flags.

Bounds are part of a field's type (`width: PositiveInt`), and `check_fields` compares each field
with its own; what depends on several fields is checked by the config itself.
"""

import functools
import typing
from types import UnionType
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin

from jaxformer.errors import UserError

LARGEST = 2**31 - 1
"""Sizes and counts are 32-bit integers."""
LARGEST_VOCABULARY = 2**20
"""Tokens of a trained tokenizer; published vocabularies have at most a quarter of it."""


class Bounds(NamedTuple):
    """An interval of numbers; nan is in none."""

    low: float
    high: float = LARGEST
    low_open: bool = False
    """Whether the lower end itself is excluded."""
    high_open: bool = False

    def __contains__(self, value: object) -> bool:
        number: Any = value
        above = number > self.low if self.low_open else number >= self.low
        return above and (number < self.high if self.high_open else number <= self.high)

    def __str__(self) -> str:
        left, right = "[("[self.low_open], "])"[self.high_open]
        return f"{left}{self.low}, {self.high}{right}"


PositiveInt = Annotated[int, Bounds(1)]
NaturalInt = Annotated[int, Bounds(0)]
PositiveFloat = Annotated[float, Bounds(0, low_open=True)]
NonNegativeFloat = Annotated[float, Bounds(0)]
Probability = Annotated[float, Bounds(0, 1, high_open=True)]
"""In [0, 1): of dropping, of smoothing; or the decay of a running mean."""
Split = Annotated[float, Bounds(0, 1, low_open=True, high_open=True)]
"""A fraction that leaves something on both sides."""
VocabularySize = Annotated[int, Bounds(0, LARGEST_VOCABULARY)]


def check_fields(config: Any, prefix: str = "") -> None:
    """Compare each field of a config with the bounds or the literals of its type.

    Raises:
        UserError: naming the flag, `prefix` and the field's name, its value and what to choose.
    """
    for name, (bounds, words) in _limits(config.__class__).items():
        value, flag = getattr(config, name), prefix + name.replace("_", "-")
        if bounds is not None and value is not None:
            require_in(bounds, flag, value)
        if words and value not in words:
            raise UserError(f"{flag} {value} is unknown: choose one of {', '.join(words)}")


def require_in(bounds: Bounds, flag: str, value: float) -> None:
    """Refuse a number outside its bounds, by its flag's name."""
    if value not in bounds:
        raise UserError(f"{flag} {value} is out of range: choose a number in {bounds}")


def require_positive(flag: str, value: float) -> None:
    """Refuse a number that is not above zero, or too large to count with, by its flag's name."""
    require_in(Bounds(0, low_open=True), flag, value)


@functools.cache
def _limits(config_type: type) -> dict[str, tuple[Bounds | None, tuple[str, ...]]]:
    """Bounds and literals of the fields that have any."""
    found = {}
    for name, hint in typing.get_type_hints(config_type, include_extras=True).items():
        # `X | None` is X where there is a value.
        kinds = get_args(hint) if get_origin(hint) in (UnionType, typing.Union) else (hint,)
        bounds = [x for kind in kinds for x in getattr(kind, "__metadata__", ())]
        words = [x for kind in kinds if get_origin(kind) is Literal for x in get_args(kind)]
        if bounds or words:
            found[name] = (bounds[0] if bounds else None, tuple(words))
    return found
