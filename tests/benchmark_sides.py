"""Sides of comparisons that cost nothing."""

import time

from benchmarks.side import Done, Work


def sleeping(seconds: float, loss: float, count: int = 1) -> Work:
    """Work that takes at least this long, of which half is a part with a name."""

    def work() -> Done:
        time.sleep(seconds)
        return Done([loss], {"half": seconds / 2}, count)

    return work


def failing() -> Work:
    """A side that cannot be built."""
    raise ValueError("no compiler here")


def dying(repetitions: int) -> Work:
    """Work that fails after this many repetitions."""
    left = iter(range(repetitions))

    def work() -> Done:
        return Done([2.0, next(left)])

    return work
