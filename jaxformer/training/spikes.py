"""Loss spikes: a running mean and variance of the losses, and which loss is far above them.

    weight <- 1 + (1 - 1/100) weight        a = 1 / weight        d = x - mean
    variance <- (1 - a) (variance + a d^2)
    mean <- mean + a d

are the mean and variance of all losses so far; a loss of 100 steps ago weighs 1/e of the newest.
The arithmetic is that of Python numbers and of jax scalars alike. What a step does about a spike,
and about a loss or gradient that is not finite, is in `step.py`.
Source: Finch 2009, "Incremental calculation of weighted mean and variance", section 9.
"""

from typing import Any, NamedTuple

WINDOW = 100
"""Steps after which the weight of a loss is 1/e."""
SETTLED = 0.5 * WINDOW
"""Sum of weights above which spikes are detected: after 69 losses."""


class LossStats(NamedTuple):
    """Statistics of the losses so far; each a number or a scalar."""

    weight: Any = 0.0
    """Sum of the weights of all losses, at most `WINDOW`."""
    mean: Any = 0.0
    """Nats per token."""
    variance: Any = 0.0
    """Nats squared."""


def update_stats(stats: LossStats, loss: Any) -> LossStats:
    """The statistics with one more loss, which must be finite."""
    weight = 1.0 + (1.0 - 1.0 / WINDOW) * stats.weight
    share, distance = 1.0 / weight, loss - stats.mean
    variance = (1.0 - share) * (stats.variance + share * distance * distance)
    return LossStats(weight, stats.mean + share * distance, variance)


def is_spike(stats: LossStats, loss: Any, deviations: float) -> Any:
    """Whether loss > mean + deviations sqrt(variance); never before the statistics are settled."""
    limit = stats.mean + deviations * stats.variance**0.5
    return (stats.weight > SETTLED) & (loss > limit)
