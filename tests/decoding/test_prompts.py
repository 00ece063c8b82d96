"""Rows of tokens: the lengths they are padded to, and what is refused."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxformer.config import GPT_PRESETS
from jaxformer.decoding.prompts import bucket, pad_prompts, validate_row
from jaxformer.errors import UserError

CONFIG = dataclasses.replace(GPT_PRESETS["toy"], vocab_size=24, context_length=16)


@given(st.integers(1, 10**6))
def test_a_bucket_is_the_next_power_of_two(number):
    assert number <= bucket(number) < 2 * number
    assert bucket(number) & (bucket(number) - 1) == 0


def test_prompts_are_padded_on_the_right_to_a_bucket_within_the_context():
    tokens_BL, lengths_B = pad_prompts([[3], [1, 2, 4]], context_length=8)
    assert tokens_BL.tolist() == [[3, 0, 0, 0], [1, 2, 4, 0]]
    assert lengths_B.tolist() == [1, 3]
    assert pad_prompts([[1] * 5], context_length=6)[0].shape == (1, 6)


@given(st.lists(st.integers(0, 23), min_size=1, max_size=16))
def test_a_valid_row_is_returned_unchanged(row):
    assert validate_row(row, "prompt", CONFIG).tolist() == row


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
        validate_row(np.asarray(row), name, CONFIG)
    assert str(error.value).startswith(line.replace("{}", name))
    assert "\n" not in str(error.value)
