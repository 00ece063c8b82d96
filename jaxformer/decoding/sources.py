"""Source sentences on their way into a batch: what is refused, how they are padded.

Batch and length are padded to powers of two, lengths to 8 or more, so that few shapes are ever
compiled.
"""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from jaxformer.batch import SpecialTokens
from jaxformer.config import TransformerConfig
from jaxformer.decoding.rows import bucket, checked_row
from jaxformer.errors import UserError

LEAST = 8  # shorter sources gain nothing by a shape of their own


def padded(
    sources: list[np.ndarray], config: TransformerConfig, specials: SpecialTokens, extra_length: int
) -> tuple[Int[Array, "B M"], Bool[Array, "B M"], Int[Array, " B"], int]:
    """Sources in a batch of powers of two, which tokens are some, each sentence's max_length (0 for
    rows that pad the batch), and the longest there can be in such a batch."""
    T = config.context_length
    B, M = bucket(len(sources)), min(bucket(max(LEAST, *map(len, sources))), T)
    source_BM = np.full((B, M), specials.padding, np.int32)
    valid_BM, max_length_B = np.zeros((B, M), bool), np.zeros(B, np.int32)
    for row, source in enumerate(sources):
        source_BM[row, : len(source)] = source
        valid_BM[row, : len(source)] = True
        max_length_B[row] = min(len(source) + extra_length, T)
    longest = min(M + extra_length, T)
    return jnp.asarray(source_BM), jnp.asarray(valid_BM), jnp.asarray(max_length_B), longest


def checked(
    sources: Sequence[Int[np.ndarray, "_"]], config: TransformerConfig, specials: SpecialTokens
) -> list[np.ndarray]:
    """The sources as arrays; UserError for what the model cannot take."""
    ids = dataclasses.astuple(specials)
    if len(set(ids)) < len(ids) or not all(0 <= i < config.vocab_size for i in ids):
        raise UserError(
            f"padding, start and end tokens {ids} are not three of the model's vocabulary of "
            f"{config.vocab_size}: give those it was trained with"
        )
    if not len(sources):
        raise UserError("there is no source: give at least one sentence")
    return [checked_row(source, "source", config) for source in sources]
