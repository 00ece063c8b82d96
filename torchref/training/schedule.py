"""Learning-rate schedules: functions of the number of steps done before."""

import math
from collections.abc import Callable

from torchref.config import NoamConfig, OptimizerConfig


def warmup_cosine(config: OptimizerConfig, steps: int) -> Callable[[int], float]:
    """Linear warm-up to the peak, then half a cosine, at the floor one update after the last."""
    peak, floor, w = config.peak_learning_rate, config.floor_learning_rate, config.warmup_steps

    def learning_rate(step: int) -> float:
        if step < w:
            return peak * (step + 1) / (w + 1)
        done = min((step - w) / max(steps - w, 1), 1.0)
        return floor + (peak - floor) * (1.0 + math.cos(math.pi * done)) / 2.0

    return learning_rate


def warmup_stable_decay(config: OptimizerConfig, steps: int) -> Callable[[int], float]:
    """Linear warm-up to the peak, which stays, and a linear decay over the last steps."""
    peak, floor, w = config.peak_learning_rate, config.floor_learning_rate, config.warmup_steps
    d = max(round(config.decay_fraction * steps), 1)

    def learning_rate(step: int) -> float:
        warm = peak * (step + 1) / (w + 1)
        left = min(max((steps - step) / d, 0.0), 1.0)
        return min(warm, floor + (peak - floor) * left)

    return learning_rate


def noam(config: NoamConfig, width: int) -> Callable[[int], float]:
    """Linear warm-up, then the inverse root of the step: factor D^-0.5 min(s^-0.5, s w^-1.5)."""

    def learning_rate(step: int) -> float:
        s = step + 1
        return config.factor * width**-0.5 * min(s**-0.5, s * config.warmup_steps**-1.5)

    return learning_rate
