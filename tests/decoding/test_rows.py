"""Rows of tokens: the lengths they are padded to, and what is refused."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxformer.config import GPT_PRESETS
from jaxformer.decoding.rows import bucket, checked_row
from jaxformer.errors import UserError

CONFIG = dataclasses.replace(GPT_PRESETS["toy"], vocab_size=24, context_length=16)


@given(st.integers(1, 10**6))
def test_a_bucket_is_the_next_power_of_two(number):
    assert number <= bucket(number) < 2 * number
    assert bucket(number) & (bucket(number) - 1) == 0


@given(st.lists(st.integers(0, 23), min_size=1, max_size=16))
def test_a_row_that_the_model_can_take_stays_as_it_is(row):
    assert checked_row(row, "prompt", CONFIG).tolist() == row


@pytest.mark.parametrize("name", ["prompt", "source"])
@pytest.mark.parametrize(
    ("row", "line"),
    [
        ([], "the {} is empty: give at least one token, such as a newline"),
        ([24], "token 24 of the {} is outside the model's vocabulary of 24: encode it"),
        ([3, -1], "token -1 of the {} is outside the model's vocabulary of 24: encode it"),
        ([0] * 17, "the {} of 17 tokens is longer than the model's context of 16: shorten it"),
        ([0.5], "a {} is an array of shape (1,) and type float64: give each {} as a flat array"),
        ([[1]], "a {} is an array of shape (1, 1) and type int64: give each {} as a flat array"),
    ],
)
def test_any_other_row_is_refused_in_one_line(name, row, line):
    with pytest.raises(UserError) as error:
        checked_row(np.asarray(row), name, CONFIG)
    assert str(error.value).startswith(line.replace("{}", name))
    assert "\n" not in str(error.value)
