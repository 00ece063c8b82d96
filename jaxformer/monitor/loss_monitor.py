"""What is watched in the losses of a run: updates that were skipped, and spikes.

The step itself leaves a bad update out (jaxformer/training/step.py); here it is counted and said,
and the run is ended when too many follow one another. All that is remembered is in metrics.jsonl,
so a resumed run goes on counting where it was.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from jaxformer.config import SpikeConfig
from jaxformer.errors import UserError
from jaxformer.training.spikes import LossStats, is_spike, seen


class LossMonitor:
    """Follows the training losses of a run, each step once and in order."""

    def __init__(
        self, spikes: SpikeConfig, max_skipped: int, before: Iterable[Mapping[str, Any]] = ()
    ):
        """`before` are the metrics of the steps that a resumed run has behind it."""
        self._spikes = spikes
        self._max_skipped = max_skipped
        self._losses = LossStats()
        self._in_a_row = 0
        self._last_good = 0
        for row in before:
            if row["split"] == "train":
                self._note(row["step"], row["loss"], "skipped" in row)

    def see(
        self, step: int, loss: float, grad_norm: float, skipped: bool
    ) -> tuple[dict[str, int], str | None]:
        """Follow a step: what its line of metrics says beside the numbers, and what the log says.

        A bad step's metrics have `skipped` 1, a spike's `spike` 1, others neither.
        """
        spike = math.isfinite(loss) and bool(is_spike(self._losses, loss, self._spikes.deviations))
        mean, deviation = self._losses.mean, self._losses.variance**0.5
        self._note(step, loss, skipped)
        if not (spike or skipped):
            return {}, None
        marks = {"spike": 1} if spike else {}
        line = f"step {step} (batch {step - 1}): loss {loss:.4f}"
        if math.isfinite(loss) and math.isfinite(grad_norm):
            line += f", a spike above {mean:.4f} ± {deviation:.4f}"
        else:
            line += f", gradient norm {grad_norm:.4f}"
        if skipped:
            marks["skipped"] = 1
            line += f": update skipped, {self._in_a_row} in a row"
        return marks, line

    def raise_if_stalled(self) -> None:
        """End a run whose updates are skipped one after the other.

        Raises:
            UserError: naming the last good step and the first batch after it.
        """
        if self._in_a_row >= self._max_skipped:
            raise UserError(
                f"{self._in_a_row} updates in a row were skipped: the last good step is "
                f"{self._last_good}, the first bad batch {self._last_good}, counted from 0; look "
                "at the batch, train with a lower learning rate, or resume with a larger "
                "--max-skipped"
            )

    def _note(self, step: int, loss: float, skipped: bool) -> None:
        if skipped:
            self._in_a_row += 1
        else:
            self._in_a_row = 0
            self._last_good = step
            self._losses = seen(self._losses, loss)
