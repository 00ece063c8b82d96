"""Reproducible random numbers: the order of the data, and which generated items are held out.

Everything derives from the raw output of Philox, which numpy guarantees never to change. It gives
no such guarantee for `permutation` and `integers`.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

SEED = 2017  # of generated data; fixed, so that the held-out items are the same in all runs
HELD_OUT = 10  # one item in 10 of a length may be held out, so the few short ones are not


def philox() -> np.random.Philox:
    """A fresh generator for a set of generated data."""
    return np.random.Philox(np.random.SeedSequence(SEED))


def shuffled(words: np.random.Philox, size: int) -> Int[np.ndarray, " size"]:
    """A random permutation of the numbers below `size`."""
    return np.argsort(words.random_raw(size), kind="stable")


def even_shares(capacities: Sequence[int], total: int) -> list[int]:
    """Split `total` as evenly as the capacities allow.

    Each share is min(capacity, level) for one common level, up to rounding. The shares add up to
    `total`, or to less if all capacities are used up.
    """
    shares = [0] * len(capacities)
    by_capacity = sorted(range(len(capacities)), key=capacities.__getitem__)
    for rank, i in enumerate(by_capacity):
        shares[i] = min(capacities[i], total // (len(capacities) - rank))
        total -= shares[i]
    return shares
