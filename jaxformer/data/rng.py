"""Draws that are the same everywhere: orders of data, and which made-up items are held out.

Everything comes from the raw words of Philox, which numpy promises never to change, as it does not
of `permutation` and `integers`.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

SEED = 2017  # of what is made up; not a setting, so that held-out items are the same in all runs
HELD_OUT = 10  # one item of so many may be held out, so that the few short ones are learned


def philox() -> np.random.Philox:
    """The words that a set of made-up data is drawn from, from the first."""
    return np.random.Philox(np.random.SeedSequence(SEED))


def shuffled(words: np.random.Philox, size: int) -> Int[np.ndarray, " size"]:
    """The numbers below `size` in random order."""
    return np.argsort(words.random_raw(size), kind="stable")


def even_shares(capacities: Sequence[int], total: int) -> list[int]:
    """Parts of `total`, as equal as the capacities allow; their sum is less only if these are full.

    Each is min(capacity, level) for one common level, up to rounding.
    """
    shares = [0] * len(capacities)
    by_capacity = sorted(range(len(capacities)), key=capacities.__getitem__)
    for rank, i in enumerate(by_capacity):
        shares[i] = min(capacities[i], total // (len(capacities) - rank))
        total -= shares[i]
    return shares
