"""Prompts of a language model and sources of a Transformer: validated, and padded into batches.

Padded lengths are powers of two, sources of at least 8 tokens, and so are the lengths of caches and
the number of sources, so that few shapes are compiled.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from jaxformer.batch import SpecialTokens
from jaxformer.config import ModelConfig, TransformerConfig
from jaxformer.errors import UserError

MIN_SOURCE_LENGTH = 8  # a shape of its own for shorter sources saves no time


def bucket(number: int) -> int:
    """The next power of two."""
    return 1 << (number - 1).bit_length()


def cache_length(longest: int, min_length: int, context_length: int) -> int:
    """The bucket of caches for windows of at most `longest` tokens."""
    return min(bucket(max(longest, min_length)), context_length)


def pad_prompts(
    prompts: Sequence[Sequence[int]], context_length: int
) -> tuple[Int[Array, "B L"], Int[Array, " B"]]:
    """Prompts padded on the right to a bucket of at most the context, and their lengths."""
    lengths_B = np.array(list(map(len, prompts)), np.int32)
    L = min(bucket(int(lengths_B.max())), context_length)
    tokens_BL = np.zeros((len(prompts), L), np.int32)
    for row, prompt in enumerate(prompts):
        tokens_BL[row, : len(prompt)] = prompt
    return jnp.asarray(tokens_BL), jnp.asarray(lengths_B)


def pad_sources(
    sources: Sequence[np.ndarray],
    config: TransformerConfig,
    specials: SpecialTokens,
    extra_length: int,
) -> tuple[Int[Array, "B M"], Bool[Array, "B M"], Int[Array, " B"], int]:
    """Sources padded to a batch of powers of two, and the maximum length of each translation.

    Returns:
        The tokens; True at tokens, False at padding; the maximum length of each translation, 0 for
        rows that pad the batch; the maximum for any source of this bucket.
    """
    T = config.context_length
    B, M = bucket(len(sources)), min(bucket(max(MIN_SOURCE_LENGTH, *map(len, sources))), T)
    source_BM = np.full((B, M), specials.padding, np.int32)
    valid_BM, max_length_B = np.zeros((B, M), bool), np.zeros(B, np.int32)
    for row, source in enumerate(sources):
        source_BM[row, : len(source)] = source
        valid_BM[row, : len(source)] = True
        max_length_B[row] = min(len(source) + extra_length, T)
    max_length = min(M + extra_length, T)
    return jnp.asarray(source_BM), jnp.asarray(valid_BM), jnp.asarray(max_length_B), max_length


def validate_prompts(
    prompts: Sequence[Int[np.ndarray, "_"]], config: ModelConfig
) -> list[Int[np.ndarray, " L"]]:
    """The prompts as arrays; UserError for what the model cannot read."""
    if not len(prompts):
        raise UserError("there is no prompt: give at least one")
    return [validate_row(prompt, "prompt", config) for prompt in prompts]


def validate_sources(
    sources: Sequence[Int[np.ndarray, "_"]], config: TransformerConfig, specials: SpecialTokens
) -> list[Int[np.ndarray, " M"]]:
    """The sources as arrays; UserError for what the model cannot read."""
    ids = dataclasses.astuple(specials)
    ends_apart = specials.end not in (specials.padding, specials.start)
    if not (ends_apart and all(0 <= i < config.vocab_size for i in ids)):
        raise UserError(
            f"padding, start and end tokens {ids} are not of the model's vocabulary of "
            f"{config.vocab_size}, or the end is one of the others: give those it was trained with"
        )
    if not len(sources):
        raise UserError("there is no source: give at least one sentence")
    return [validate_row(source, "source", config) for source in sources]


def validate_row(
    row: Int[np.ndarray, "_"],
    name: Literal["prompt", "source"],
    config: ModelConfig,
) -> Int[np.ndarray, " L"]:
    """The row as a flat array of 1 to context_length token ids; UserError for anything else."""
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
            f"the {name} of {len(row):,} tokens is longer than the model's context of "
            f"{config.context_length:,}: shorten it"
        )
    outside = row[(row < 0) | (row >= config.vocab_size)]
    if outside.size:
        raise UserError(
            f"token {outside[0]} of the {name} is outside the model's vocabulary of "
            f"{config.vocab_size}: encode it with the model's own tokenizer"
        )
    return row
