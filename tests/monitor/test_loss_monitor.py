"""Spikes and skipped updates are logged, and too many skipped in a row end a run."""

import math

import pytest

from jaxformer.errors import UserError
from jaxformer.monitor.loss_monitor import LossMonitor
from jaxformer.training.spikes import LossStats
from jaxformer.training.step import Metrics

STATS = LossStats(90.0, 4.5, 0.25)


def metrics(
    loss: float = 4.0, norm: float = 1.0, *, spike: bool = False, skipped: bool = False
) -> Metrics:
    return Metrics(loss, norm, 1e-3, STATS, spike, skipped)


def test_nothing_is_logged_of_a_good_step() -> None:
    monitor = LossMonitor(1)
    for step in range(1, 200):
        assert monitor.observe(step, metrics()) == ({}, None)
        monitor.raise_if_stalled()


def test_a_spike_is_logged_with_loss_mean_and_deviation() -> None:
    monitor = LossMonitor(1)
    marks, line = monitor.observe(101, metrics(9.0, 2.0, spike=True))
    assert marks == {"spike": 1}
    assert line == "step 101 (batch 100): loss 9.0000, a spike above 4.5000 ± 0.5000"
    monitor.raise_if_stalled()
    marks, line = monitor.observe(102, metrics(9.0, 2.0, spike=True, skipped=True))
    assert marks == {"spike": 1, "skipped": 1}
    assert line == (
        "step 102 (batch 101): loss 9.0000, a spike above 4.5000 ± 0.5000: "
        "update skipped, 1 in a row"
    )


@pytest.mark.parametrize(("loss", "norm"), [(math.nan, 1.0), (math.inf, 1.0), (4.0, math.inf)])
def test_skipped_updates_are_counted_in_a_row_and_end_the_run(loss: float, norm: float) -> None:
    monitor = LossMonitor(3)
    for step in range(1, 8):
        monitor.observe(step, metrics())
    for step, count in ((8, 1), (9, 2), (10, 3)):
        monitor.raise_if_stalled()
        marks, line = monitor.observe(step, metrics(loss, norm, skipped=True))
        assert marks == {"skipped": 1}
        assert line == (
            f"step {step} (batch {step - 1}): loss {loss:.4f}, gradient norm {norm:.4f}: "
            f"update skipped, {count} in a row"
        )
    with pytest.raises(UserError, match="last good step is 7, the first bad batch 7,"):
        monitor.raise_if_stalled()


def test_a_good_update_resets_the_count() -> None:
    monitor = LossMonitor(2)
    for step in range(1, 20):
        monitor.observe(step, metrics(skipped=step % 2 == 1))
        monitor.raise_if_stalled()


def test_a_resumed_monitor_continues_the_count() -> None:
    rows = [
        {"step": 1, "split": "train", "loss": 4.0},
        *({"step": step, "split": "train", "loss": math.nan, "skipped": 1} for step in (2, 3)),
        {"step": 3, "split": "val", "loss": 4.0},
    ]
    monitor = LossMonitor(3, rows)
    _, line = monitor.observe(4, metrics(math.nan, skipped=True))
    assert line is not None
    assert line.endswith("update skipped, 3 in a row")
    with pytest.raises(UserError, match="last good step is 1, the first bad batch 1,"):
        monitor.raise_if_stalled()
