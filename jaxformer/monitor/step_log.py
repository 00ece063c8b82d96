"""The log of a run: a step's line in metrics.jsonl, and its place in the progress line.

The metrics of a step are read back only after the next step was started, so that the device does
not wait for the host.
"""

import math
import time
from typing import Any

import jax
from jax.sharding import Mesh

from jaxformer.config import LayerConfig, RunConfig
from jaxformer.evaluation.loss import Evaluation
from jaxformer.monitor.loss_monitor import LossMonitor
from jaxformer.monitor.metrics import MetricsWriter
from jaxformer.monitor.progress import Progress, time_of_day
from jaxformer.planning.hardware import Product, mfu
from jaxformer.runtime.memory import memory_bytes
from jaxformer.tasks.task import StepCost
from jaxformer.training.step import Metrics


class StepLog:
    """Writes steps' metrics once and in order, with durations; the monitor sees every step."""

    def __init__(
        self,
        config: RunConfig,
        mesh: Mesh,
        writer: MetricsWriter,
        progress: Progress,
        monitor: LossMonitor,
        every: int = 1,
    ):
        """`every` is the number of steps between two lines of training steps."""
        self.config = config
        self.mesh = mesh
        self.writer = writer
        self.progress = progress
        self.monitor = monitor
        self.every = every
        self._pending: tuple[int, Metrics, StepCost] | None = None
        self._since: float | None = None

    def add(self, step: int, metrics: Metrics, cost: StepCost) -> None:
        """Note a step that was just started and write the one before it.

        Raises:
            UserError: when too many updates in a row were skipped; their lines are written.
        """
        self._write_pending()
        self._pending = (step, metrics, cost)

    def flush(self) -> None:
        """Write the last step; the pause that follows is not counted as a step's time."""
        self._since = None  # a step that no other follows was not timed from end to end
        self._write_pending()
        self._since = None

    def evaluated(self, step: int, evaluation: Evaluation) -> None:
        """Write a validation loss."""
        values = {"tokens": evaluation.num_tokens, "time": now()}
        self.writer.write(step, "val", loss=evaluation.loss, **values)
        line = f"step {step}/{self.config.steps} · validation loss {evaluation.loss:.4f} · "
        if math.isfinite(evaluation.loss):
            line += f"perplexity {evaluation.perplexity:.2f}"
        else:
            line += "no finite number, so this step is never the best checkpoint"
        self.progress.print(f"{line} · {time_of_day()}")

    def note_compilations(self, number: int, expected: int) -> None:
        """Report it if the train step was compiled more often than batches have shapes.

        Each compilation takes as long as the first.
        """
        if number > expected:
            allowed = "once" if expected == 1 else f"{expected}"
            self.progress.print(f"the train step was compiled {number} times, not {allowed}")

    def _write_pending(self) -> None:
        if self._pending is None:
            return
        step, metrics, cost = self._pending
        self._pending = None
        metrics = jax.device_get(metrics)  # waits for the step to end
        ended, since = time.perf_counter(), self._since
        self._since = ended
        speed = {} if since is None else self._speed(cost, ended - since)
        marks, warning = self.monitor.observe(step, metrics)
        loss, learning_rate = float(metrics.loss), float(metrics.learning_rate)
        if step % self.every == 0 or step == self.config.steps or marks:
            self.writer.write(
                step,
                "train",
                loss=loss,
                grad_norm=float(metrics.grad_norm),
                learning_rate=learning_rate,
                memory_bytes=memory_bytes(self.mesh.local_devices),
                time=now(),
                **speed,
                **marks,
            )
        if warning is not None:
            self.progress.print(warning)
        self.monitor.raise_if_stalled()
        self.progress.update(
            step,
            loss=loss,
            learning_rate=learning_rate,
            tokens=cost.tokens,
            seconds=speed.get("step_seconds"),
        )

    def _speed(self, cost: StepCost, seconds: float) -> dict[str, float]:
        speed = {"step_seconds": seconds, "tokens_per_second": cost.tokens / seconds}
        devices = list(self.mesh.devices.flat)
        share = mfu(cost.flops, seconds, devices, product_type(self.config.model))
        return speed if share is None else {**speed, "mfu": share}


def now() -> float:
    """Seconds since 1970 in UTC, to the millisecond."""
    return round(time.time(), 3)


def product_type(config: LayerConfig) -> Product:
    """The arithmetic of matrix products: JAX's own choice for float32 on GPUs is TF32."""
    if config.dtype == "bfloat16":
        return "bfloat16"
    on_gpu = jax.default_backend() == "gpu"
    settings: Any = jax.config
    precise = settings.jax_default_matmul_precision in ("highest", "float32")
    return "tensorfloat32" if on_gpu and not precise else "float32"
