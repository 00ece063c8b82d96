"""Rows of tokens on their way into a batch: what is refused, and what they are padded to."""

from typing import Literal

import numpy as np
from jaxtyping import Int

from jaxformer.config import GPTConfig, TransformerConfig
from jaxformer.errors import UserError


def bucket(number: int) -> int:
    """The next power of two, so that few shapes are ever compiled."""
    return 1 << (number - 1).bit_length()


def checked_row(
    row: Int[np.ndarray, "_"],
    name: Literal["prompt", "source"],
    config: GPTConfig | TransformerConfig,
) -> Int[np.ndarray, " L"]:
    """The row as a flat array of token ids; UserError, with the row's name, for anything else."""
    row = np.asarray(row)
    if row.size == 0:
        raise UserError(f"the {name} is empty: give at least one token, such as a newline")
    if row.ndim != 1 or not np.issubdtype(row.dtype, np.integer):
        raise UserError(
            f"a {name} is an array of shape {row.shape} and type {row.dtype}: "
            f"give each {name} as a flat array of integer token ids"
        )
    if len(row) > config.context_length:
        raise UserError(
            f"the {name} of {len(row)} tokens is longer than the model's context of "
            f"{config.context_length}: shorten it"
        )
    outside = row[(row < 0) | (row >= config.vocab_size)]
    if outside.size:
        raise UserError(
            f"token {outside[0]} of the {name} is outside the model's vocabulary of "
            f"{config.vocab_size}: encode it with the model's own tokenizer"
        )
    return row
