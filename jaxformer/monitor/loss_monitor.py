"""Skipped updates and spikes: what the log says about them, and when they end a run.

The step itself detects both and leaves a bad update out (jaxformer/training/step.py). Skipped
updates in a row are counted here, from metrics.jsonl on, so a resumed run continues the count.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from jaxformer.errors import UserError
from jaxformer.training.step import Metrics


class LossMonitor:
    """Follows the steps of a run, each once and in order."""

    def __init__(self, max_skipped: int, before: Iterable[Mapping[str, Any]] = ()):
        """`before` are the lines of metrics.jsonl up to the step a run is resumed from."""
        self._max_skipped = max_skipped
        self._in_a_row = 0
        self._last_skipped = 0
        for row in before:
            if row["split"] == "train":
                self._count(row["step"], "skipped" in row)

    def observe(self, step: int, metrics: Metrics) -> tuple[dict[str, int], str | None]:
        """Count a step: the marks of its line in metrics.jsonl, and a line for the log if any.

        The marks are `skipped` 1 and `spike` 1, each only where it is so.
        """
        self._count(step, bool(metrics.skipped))
        marks = {name: 1 for name in ("spike", "skipped") if getattr(metrics, name)}
        if not marks:
            return marks, None
        line = f"step {step} (batch {step - 1}): loss {metrics.loss:.4f}"
        if math.isfinite(metrics.loss) and math.isfinite(metrics.grad_norm):
            _, mean, variance = metrics.loss_stats
            line += f", a spike above {mean:.4f} ± {variance**0.5:.4f}"
        else:
            line += f", gradient norm {metrics.grad_norm:.4f}"
        if metrics.skipped:
            line += f": update skipped, {self._in_a_row} in a row"
        return marks, line

    def raise_if_stalled(self) -> None:
        """End a run in which too many updates in a row were skipped.

        Raises:
            UserError: naming the last good step and the first batch after it.
        """
        last_good = self._last_skipped - self._in_a_row
        if self._in_a_row >= self._max_skipped:
            raise UserError(
                f"{self._in_a_row} updates in a row were skipped: the last good step is "
                f"{last_good}, the first bad batch {last_good}, counted from 0; look "
                "at the batch, train with a lower learning rate, or resume with a larger "
                "--max-skipped"
            )

    def _count(self, step: int, skipped: bool) -> None:
        # A step without a line in metrics.jsonl (--log-every) was not skipped.
        if not skipped or step != self._last_skipped + 1:
            self._in_a_row = 0
        if skipped:
            self._in_a_row, self._last_skipped = self._in_a_row + 1, step
