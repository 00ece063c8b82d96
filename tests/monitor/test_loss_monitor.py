"""The vigil: spikes and skipped updates are said, and too many skipped ones end a run."""

import math

import pytest

from jaxformer.config import SpikeConfig
from jaxformer.errors import UserError
from jaxformer.monitor.loss_monitor import LossMonitor


def steady(vigil: LossMonitor, steps: int) -> None:
    for step in range(1, steps + 1):
        assert vigil.see(step, 4.0 + step % 2, 1.0, False) == ({}, None)
        vigil.raise_if_stalled()


def test_a_quiet_run_has_nothing_said_about_it() -> None:
    steady(LossMonitor(SpikeConfig(), 1), 200)


def test_a_spike_is_told_by_loss_mean_and_deviation() -> None:
    vigil = LossMonitor(SpikeConfig(deviations=4.0), 1)
    steady(vigil, 100)
    marks, line = vigil.see(101, 9.0, 2.0, False)
    assert marks == {"spike": 1}
    assert line is not None
    assert line.startswith("step 101 (batch 100): loss 9.0000, a spike above 4.4")
    vigil.raise_if_stalled()


@pytest.mark.parametrize(("loss", "norm"), [(math.nan, 1.0), (math.inf, 1.0), (4.0, math.inf)])
def test_skipped_updates_are_counted_in_a_row_and_end_the_run(loss: float, norm: float) -> None:
    vigil = LossMonitor(SpikeConfig(), 3)
    steady(vigil, 7)
    for step, count in ((8, 1), (9, 2), (10, 3)):
        vigil.raise_if_stalled()
        marks, line = vigil.see(step, loss, norm, True)
        assert marks == {"skipped": 1}
        assert line == (
            f"step {step} (batch {step - 1}): loss {loss:.4f}, gradient norm {norm:.4f}: "
            f"update skipped, {count} in a row"
        )
    with pytest.raises(UserError, match="last good step is 7, the first bad batch 7,"):
        vigil.raise_if_stalled()


def test_a_good_update_begins_the_count_anew() -> None:
    vigil = LossMonitor(SpikeConfig(), 2)
    for step in range(1, 20):
        vigil.see(step, 4.0, 1.0, step % 2 == 1)
        vigil.raise_if_stalled()


def test_a_resumed_vigil_is_the_one_that_was_interrupted() -> None:
    whole, rows = LossMonitor(SpikeConfig(), 9), []
    for step in range(1, 120):
        skipped = step % 40 > 37
        loss = math.nan if skipped else 3.0 + step % 3
        marks, _ = whole.see(step, loss, 1.0, skipped)
        rows.append({"step": step, "split": "train", "loss": loss, **marks})
        rows.append({"step": step, "split": "val", "loss": 100.0})
    again = LossMonitor(SpikeConfig(), 9, rows)
    for loss in (3.2, 5.0, 500.0, 3.0):
        assert again.see(120, loss, 1.0, False) == whole.see(120, loss, 1.0, False)


def test_a_resumed_vigil_goes_on_counting() -> None:
    rows = [{"step": step, "split": "train", "loss": math.nan, "skipped": 1} for step in (1, 2)]
    _, line = LossMonitor(SpikeConfig(), 9, rows).see(3, math.nan, 1.0, True)
    assert line is not None
    assert line.endswith("update skipped, 3 in a row")
