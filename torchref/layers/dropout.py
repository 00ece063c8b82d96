"""Dropout whose masks come from outside, so that two programs can drop the same units.

A model receives a `Keep` and gives each dropout its own by path, `keep.at("blocks", 3)`. The source
is any function from (path, rate, shape) to a boolean mask: `random_keep` draws masks, and a proof
passes those of the other program.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Path = tuple[str | int, ...]
Source = Callable[[Path, float, tuple[int, ...]], Tensor]


class Keep:
    """The source of dropout masks, and the path of the module that uses them."""

    def __init__(self, source: Source, path: Path = ()):
        self.source = source
        self.path = path

    def at(self, *path: str | int) -> "Keep":
        """The same source for a module further down."""
        return Keep(self.source, self.path + path)

    def mask(self, rate: float, shape: tuple[int, ...]) -> Tensor:
        """True where a unit is kept."""
        return self.source(self.path, rate, shape)


def fold_path(keep: Keep | None, *path: str | int) -> Keep | None:
    """`keep.at(*path)`; None, which means no dropout, stays None."""
    return None if keep is None else keep.at(*path)


def random_keep(generator: torch.Generator) -> Keep:
    """Masks drawn afresh at each call."""
    return Keep(lambda path, rate, shape: torch.rand(shape, generator=generator) >= rate)


def dropout(x: Tensor, rate: float, keep: Keep | None) -> Tensor:
    """x / (1 - rate) where kept, 0 where dropped; x itself without a Keep or at rate 0."""
    if keep is None or rate == 0.0:
        return x
    return torch.where(keep.mask(rate, tuple(x.shape)), x / (1.0 - rate), 0.0)
