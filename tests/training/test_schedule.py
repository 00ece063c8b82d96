"""Noam's schedule is its formula, moves at the first update and peaks at the end of the warm-up."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxformer.config import NoamConfig
from jaxformer.training.schedule import noam


@given(
    step=st.integers(0, 200_000),
    warmup=st.integers(1, 10_000),
    width=st.sampled_from([16, 512, 1024]),
    factor=st.sampled_from([0.5, 1.0, 2.0]),
)
def test_noam_is_its_formula(step, warmup, width, factor):
    s = step + 1
    expected = factor / width**0.5 * min(s**-0.5, s / warmup**1.5)
    found = noam(NoamConfig(warmup_steps=warmup, factor=factor), width)(step)
    np.testing.assert_allclose(float(found), expected, rtol=1e-6)


@pytest.mark.parametrize("warmup", [1, 7, 4000])
def test_noam_rises_to_the_end_of_the_warm_up_and_falls_from_there(warmup):
    rate = noam(NoamConfig(warmup_steps=warmup), 512)
    peak = float(rate(warmup - 1))
    np.testing.assert_allclose(peak, (512 * warmup) ** -0.5, rtol=1e-6)
    assert 0 < float(rate(0)) <= peak
    assert float(rate(warmup)) < peak
    assert warmup == 1 or float(rate(warmup - 2)) < peak
