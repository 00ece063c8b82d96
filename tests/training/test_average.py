"""The average of parameters is numpy's, and holds two sets at most while it is formed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxformer.errors import UserError
from jaxformer.parity.bounds import UNITS_IN_LAST_PLACE
from jaxformer.training.average import _add_to_mean, average

DTYPES = ("float64", "float32", "bfloat16")


def rounding(dtype):
    """Of a mean in float32 or float64, and for bfloat16 once more, to its eight bits at the end."""
    wide = "float64" if dtype == "float64" else "float32"
    return UNITS_IN_LAST_PLACE * np.finfo(wide).eps + (2**-8 if dtype == "bfloat16" else 0)


def drawn(seed, dtype):
    rng = np.random.default_rng(seed)
    leaves = {"a": (3, 4), "b": (5,)}
    return {
        "m": {k: jnp.asarray(1000 + 100 * rng.standard_normal(s), dtype) for k, s in leaves.items()}
    }


@given(count=st.integers(1, 12), seed=st.integers(0, 99), dtype=st.sampled_from(DTYPES))
def test_the_average_is_numpys(count, seed, dtype):
    with jax.enable_x64(dtype == "float64"):
        sets = [drawn([seed, i], dtype) for i in range(count)]
        found = average(iter(sets))
        for name, leaf in found["m"].items():
            assert leaf.dtype == dtype
            expected = np.mean([np.asarray(x["m"][name], np.float64) for x in sets], axis=0)
            np.testing.assert_allclose(np.asarray(leaf, np.float64), expected, rtol=rounding(dtype))


def test_a_mean_of_many_narrow_numbers_still_moves():
    # In bfloat16 m - m / k is m again once k is above 256.
    sets = [{"w": jnp.full(2, i < 100, jnp.bfloat16)} for i in range(1000)]
    np.testing.assert_array_equal(average(sets)["w"], jnp.full(2, 0.1, jnp.bfloat16))


def test_what_is_averaged_stays_as_it_was():
    sets = [drawn(i, "float32") for i in range(3)]
    before = jax.tree.map(np.array, sets)
    average(sets)
    jax.tree.map(np.testing.assert_array_equal, sets, before)


def test_one_set_is_its_own_average():
    params = drawn(0, "float32")
    jax.tree.map(np.testing.assert_array_equal, average([params]), params)


def test_two_sets_are_held_at_most():
    shape, held = (7, 11, 13), []

    def read():
        for i in range(5):
            held.append(sum(array.shape == shape for array in jax.live_arrays()))
            yield {"w": jnp.full(shape, float(i))}

    assert average(read())["w"][0, 0, 0] == 2
    assert held == [0, 1, 1, 1, 1]  # the mean alone, while the next is read


def test_the_mean_is_updated_in_place():
    mean = {"w": jnp.zeros(3)}
    _add_to_mean(mean, {"w": jnp.ones(3)}, jnp.asarray(2))
    assert mean["w"].is_deleted()


def test_nothing_has_no_average():
    with pytest.raises(UserError, match="no parameters to average"):
        average([])
