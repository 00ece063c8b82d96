"""Each transform: its formula, and an inverse that undoes it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from jaxformer.weights.transforms import Halves, Transform, Transpose


@st.composite
def fitting(draw: st.DrawFn) -> tuple[np.ndarray, Transform]:
    """An array and a transform that it fits."""
    shape = draw(npst.array_shapes(max_dims=4, max_side=5))
    array = np.random.default_rng(draw(st.integers(0, 99))).standard_normal(shape)
    axis = draw(st.integers(-array.ndim, array.ndim - 1))
    axes = tuple(draw(st.permutations(range(array.ndim))))
    return array, draw(st.sampled_from([Transpose(axes), Halves(axis)]))


@settings(max_examples=200)
@given(fitting())
def test_the_inverse_undoes_the_transform_from_either_side(drawn):
    array, transform = drawn
    np.testing.assert_array_equal(transform.inverse(transform.forward(array)), array)
    np.testing.assert_array_equal(transform.forward(transform.inverse(array)), array)


@given(st.integers(1, 6), st.integers(1, 4))
def test_halves_are_all_first_of_the_pairs_before_all_second(pairs, width):
    array = np.arange(2 * pairs * width).reshape(2 * pairs, width)
    expected = array.reshape(pairs, 2, width).swapaxes(0, 1).reshape(array.shape)
    np.testing.assert_array_equal(Halves(0).forward(array), expected)
    np.testing.assert_array_equal(Halves(-1).forward(array.T), expected.T)


def test_a_transposition_gives_pytorchs_axes():
    assert Transpose((2, 0, 1)).forward(np.zeros((3, 4, 5))).shape == (5, 3, 4)


@pytest.mark.parametrize("transform", [Transpose((1, 0)), Halves(1)])
def test_an_array_of_too_few_axes_does_not_fit(transform):
    for direction in (transform.forward, transform.inverse):
        with pytest.raises(ValueError, match="ax"):
            direction(np.zeros(3))
