"""Learning-rate schedules: functions of the number of steps done before."""

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from jaxformer.config import NoamConfig, OptimizerConfig


def warmup_cosine(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Linear warm-up to the peak, then half a cosine, at the floor one update after the last.

    With w warm-up steps, update s (from 0) uses
        peak (s + 1) / (w + 1)                                                      s < w
        floor + (peak - floor) (1 + cos(pi (s - w) / (steps - w))) / 2              s >= w
    (Loshchilov & Hutter 2017, equation 5, without restarts). From s = steps on, one past
    the last update, it is at the floor.
    """
    peak, floor, w = config.peak_learning_rate, config.floor_learning_rate, config.warmup_steps
    schedule = optax.join_schedules(
        [
            optax.linear_schedule(peak / (w + 1), peak, w),
            optax.cosine_decay_schedule(peak, max(steps - w, 1), alpha=floor / peak),
        ],
        boundaries=[w],
    )

    def learning_rate(step: Int[Array, ""] | int) -> Float[Array, ""]:
        # optax divides integer counts in float32 even where the rest is float64.
        return schedule(jnp.asarray(step, jnp.result_type(float)))

    return learning_rate


def warmup_stable_decay(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Linear warm-up to the peak, which stays, and a linear decay over the last steps.

    With w warm-up steps and d = decay_fraction steps of decay, at least one, update s (from 0) uses
        peak (s + 1) / (w + 1)                               s < w
        peak                                                 w <= s < steps - d
        floor + (peak - floor) (steps - s) / d               steps - d <= s
    (Hu et al. 2024, section 4.2; Hägele et al. 2024, section 3). From s = steps on, one past the
    last update, it is at the floor.
    """
    peak, floor, w = config.peak_learning_rate, config.floor_learning_rate, config.warmup_steps
    d = max(round(config.decay_fraction * steps), 1)

    def learning_rate(step: Int[Array, ""] | int) -> Float[Array, ""]:
        s = jnp.asarray(step, jnp.result_type(float))
        warm, left = (s + 1) / (w + 1), jnp.clip((steps - s) / d, 0.0, 1.0)
        return jnp.minimum(peak * warm, floor + (peak - floor) * left)

    return learning_rate


def noam(config: NoamConfig, width: int) -> optax.Schedule:
    """Linear warm-up, then the inverse root of the step: factor D^-0.5 min(s^-0.5, s w^-1.5).

    Update s counts from 1, so the first one moves; the peak, factor (D w)^-0.5, is at s = w
    (Vaswani et al. 2017, equation 3). There is no end.
    """
    w = config.warmup_steps

    def learning_rate(step: Int[Array, ""] | int) -> Float[Array, ""]:
        s = jnp.asarray(step, jnp.result_type(float)) + 1.0
        return config.factor * width**-0.5 * jnp.minimum(s**-0.5, s * w**-1.5)

    return learning_rate
