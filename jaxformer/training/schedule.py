"""Learning-rate schedules: functions of the number of updates made so far."""

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from jaxformer.config import OptimizerConfig


def warmup_cosine(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Linear warm-up to the peak, then half a cosine to the floor at the last of `steps`.

    With w warm-up steps, update s (from 0) uses
        peak (s + 1) / (w + 1)                                                      s < w
        floor + (peak - floor) (1 + cos(pi (s - w) / (steps - w))) / 2              s >= w
    (Loshchilov & Hutter 2017, equation 5, without restarts). Past `steps` it stays at the floor.
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
