"""Loss spikes: a running mean and variance of the losses, and what is far above them.

    weight <- 1 + (1 - 1/100) weight        a = 1 / weight        d = x - mean
    variance <- (1 - a) (variance + a d^2)
    mean <- mean + a d

are the mean and variance of all losses so far, the newest weighing most and one of 100 steps ago
1/e as much. Plain arithmetic: numbers of Python and scalars of jax go through the same functions.
Source: Finch 2009, "Incremental calculation of weighted mean and variance", section 9.
"""

from typing import Any, NamedTuple

WINDOW = 100
"""Steps after which a loss weighs 1/e."""
SETTLED = 0.5 * WINDOW
"""Weight from which on spikes are told: after 69 losses."""


class LossStats(NamedTuple):
    """What is remembered of the losses so far; each a number or a scalar."""

    weight: Any = 0.0
    """Sum of the weights of all losses, at most `WINDOW`."""
    mean: Any = 0.0
    """Nats a token."""
    variance: Any = 0.0
    """Of the losses, in nats squared."""


def seen(losses: LossStats, loss: Any) -> LossStats:
    """What is remembered after one more loss, which must be finite."""
    weight = 1.0 + (1.0 - 1.0 / WINDOW) * losses.weight
    share, distance = 1.0 / weight, loss - losses.mean
    variance = (1.0 - share) * (losses.variance + share * distance * distance)
    return LossStats(weight, losses.mean + share * distance, variance)


def is_spike(losses: LossStats, loss: Any, deviations: float) -> Any:
    """Whether loss > mean + deviations sqrt(variance), once there are losses enough to tell."""
    limit = losses.mean + deviations * losses.variance**0.5
    return (losses.weight > SETTLED) & (loss > limit)
