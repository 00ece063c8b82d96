"""The measure of equality, the rows it gives, and the table of bounds."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jaxformer.parity.bounds import BFLOAT16_RATIO, BOUNDS
from jaxformer.parity.engine.comparison import Comparison
from jaxformer.porting.compare import Key, Row, all_ok, as_numpy, compare, relative_error

X = np.array([3.0, 4.0])
KEY = Key("layer", "output", "x")


@given(scale=st.floats(1e-6, 1e6), error=st.floats(1e-9, 1e3))
def test_error_is_relative_to_the_norm_of_the_pytorch_value(scale, error):
    ours, theirs = scale * X * (1 + error), torch.tensor(scale * X)
    assert relative_error(ours, theirs) == pytest.approx(error, rel=1e-6)


def test_zeros_are_compared_absolutely():
    assert relative_error(np.array([0.0, 0.25]), np.zeros(2)) == 0.25
    small = X / 64
    assert relative_error(small + np.array([0.0, 0.25]), small, true_zero=True) == 0.25
    assert relative_error(X + np.array([0.0, 0.25]), X, true_zero=True) == 0.05


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (X, X[None]),
        (X, X[:1]),
        (np.array([3, 4]), X),
        (np.array([3.0, math.nan]), X),
        (X, np.array([3.0, math.nan])),
        (np.array([3.0, math.inf]), np.array([3.0, math.inf])),
        (np.array([True]), np.array([1])),
    ],
)
def test_another_shape_or_kind_or_what_is_not_finite_is_infinitely_wrong(ours, theirs):
    assert relative_error(ours, theirs) == math.inf


def test_integers_and_booleans_are_counted():
    assert relative_error(jnp.array([1, 2, 3]), torch.tensor([1, 0, 0])) == 2
    assert relative_error(np.array([True, False]), torch.tensor([True, False])) == 0


def test_every_library_and_width_becomes_the_same_numbers():
    for value in (
        jnp.asarray(X, jnp.bfloat16),
        torch.tensor(X, dtype=torch.bfloat16),
        jnp.asarray(X, jnp.float32),
        torch.nn.Parameter(torch.tensor(X)),
    ):
        array = as_numpy(value)
        assert array.dtype == np.float64
        np.testing.assert_array_equal(array, X)


def test_a_value_that_one_side_lacks_fails():
    for ours, theirs in (({KEY: X}, {}), ({}, {KEY: X})):
        (row,) = compare(ours, theirs, 1.0, "float64", "gpt")
        assert row == Row("gpt", *KEY, "float64", math.inf, 0.0, False)


def test_tokens_must_be_equal_however_loose_the_bound():
    ours, theirs = {KEY: np.array([1, 2])}, {KEY: np.array([1, 3])}
    assert not compare(ours, theirs, 1e6, "float64", "gpt")[0].ok
    assert compare(ours, theirs, None, "float32", "gpt")[0].ok


def test_key_biases_have_gradients_of_zero_but_outputs_like_any_other():
    noise, more = np.array([1e-16]), np.array([2e-16])
    gradient = Key("attention.key", "param_grad", "attention/key/bias")
    assert compare({gradient: noise}, {gradient: more}, 1e-13, "float64", "gpt")[0].ok
    output = Key("attention.key", "output", "attention/key/bias")
    assert not compare({output: noise}, {output: more}, 1e-13, "float64", "gpt")[0].ok


def test_bfloat16_is_measured_against_the_truth():
    truth, theirs = {KEY: X}, {KEY: X * 1.01}
    for factor, ok in ((1.012, True), (0.99, True), (1.013, False)):
        (row,) = compare({KEY: X * factor}, theirs, BFLOAT16_RATIO, "bfloat16", "gpt", truth)
        assert row.ok is ok
        assert row.bound == pytest.approx(BFLOAT16_RATIO * 0.01)


def test_nothing_measured_is_nothing_proven():
    assert not all_ok([])
    good = Row("gpt", *KEY, "float64", 0.0, 1.0, True)
    assert all_ok([good])
    assert not all_ok([good, good._replace(ok=False)])
    assert not Comparison.of([]).ok
    assert Comparison.of([good, good._replace(layer="bad", ok=False)]).layer == "bad"
    assert Comparison.of([good]) == ([good], None)


def test_the_bounds_are_those_of_the_documentation():
    assert BOUNDS == {
        ("layer", "float64"): 1e-13,
        ("layer", "float32"): 3e-6,
        ("model", "float64"): 1e-12,
        ("model", "float32"): 2e-5,
        ("state", "float64"): 1e-9,
        ("state", "float32"): None,
        ("tokens", "float64"): 0.0,
        ("tokens", "float32"): None,
    }
    assert BFLOAT16_RATIO == 1.25
