"""Running mean and variance of losses are the weighted ones, on the host and on a device alike."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxformer.training.spikes import WINDOW, LossStats, is_spike, update_stats

LOSSES = st.lists(st.floats(0.0, 20.0), min_size=1, max_size=120)


@given(LOSSES)
def test_mean_and_variance_are_the_weighted_ones(values: list[float]) -> None:
    found = LossStats()
    for value in values:
        found = update_stats(found, value)
    weights = (1 - 1 / WINDOW) ** np.arange(len(values))[::-1]
    mean = np.average(values, weights=weights)
    variance = np.average((np.array(values) - mean) ** 2, weights=weights)
    np.testing.assert_allclose(found, (weights.sum(), mean, variance), rtol=1e-9, atol=1e-9)


@given(LOSSES)
def test_a_device_computes_the_same(values: list[float]) -> None:
    host, device = LossStats(), jax.tree.map(np.float32, LossStats())
    step = jax.jit(update_stats)
    for value in values:
        host, device = update_stats(host, value), step(device, np.float32(value))
    np.testing.assert_allclose(device, host, rtol=1e-4, atol=1e-4)


def test_a_spike_is_far_above_the_mean_and_never_below_it() -> None:
    losses = LossStats(0.9 * WINDOW, 4.0, 0.25)
    assert not is_spike(losses, 4.0 + 5.9 * 0.5, 6.0)
    assert is_spike(losses, 4.0 + 6.1 * 0.5, 6.0)
    assert not is_spike(losses, 0.1, 6.0)


@pytest.mark.parametrize(("number", "detected"), [(68, False), (69, True)])
def test_spikes_are_detected_after_69_losses(number: int, detected: bool) -> None:
    losses = LossStats()
    for i in range(number):
        losses = update_stats(losses, 4.0 + i % 2)
    assert is_spike(losses, 100.0, 6.0) == detected
