"""A run without its data: how many tokens it will have, and the largest batch it can meet.

What a plan needs of the data, taken from the configuration alone: no text is read, no tokenizer
trained. Where the configuration leaves a number open that only the text knows, it has to be given.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxformer.batch import Batch, PairBatch, SpecialTokens
from jaxformer.config import CopyConfig, LanguageConfig, TextPairsConfig, TranslationConfig
from jaxformer.data.pair_batches import batch_shapes
from jaxformer.data.tokenizer import NUM_BYTES
from jaxformer.errors import UserError
from jaxformer.sharding.mesh import batch_sharding, check_batch_size
from jaxformer.tasks.config_io import RunConfig
from jaxformer.tasks.flops import gpt_flops, transformer_flops
from jaxformer.tasks.language_modeling import language_method
from jaxformer.tasks.resolve import resolve_config
from jaxformer.tasks.task import TrainSpec
from jaxformer.tasks.translation import row_multiple, translation_method

NUM_SPECIALS = 3


class LargestBatch(NamedTuple):
    """The batch that a step takes the most memory and work for."""

    arrays: Any
    """Shapes, types and places in the place of its arrays."""
    shape: tuple[int, int]
    """Rows and length (B, L)."""
    flops: float
    """Forward and backward over it, padding included."""


def abstract_method(config: RunConfig) -> TrainSpec:
    """How a run learns whose tokenizer has the size that its configuration asks for.

    Raises:
        UserError: when only the text knows the number of tokens.
    """
    tokens = tokenizer_size(config)
    if isinstance(config, LanguageConfig):
        return language_method(resolve_config(config, tokens))
    specials = SpecialTokens(padding=tokens, start=tokens + 1, end=tokens + 2)
    return translation_method(resolve_config(config, tokens + NUM_SPECIALS), specials)


def tokenizer_size(config: RunConfig) -> int:
    """Tokens of the run's tokenizer: as many as a BPE may learn, 256 bytes, the letters in use.

    A number of the model's own (`--model.vocab-size`) is taken for the tokenizer's too.
    """
    data = config.data
    special = 0 if isinstance(config, LanguageConfig) else NUM_SPECIALS
    if config.model.vocab_size:
        return max(config.model.vocab_size - special, 1)
    if isinstance(data, CopyConfig):
        return data.num_symbols
    if data.tokenizer == "bytes":
        return NUM_BYTES
    if data.tokenizer == "bpe":
        return data.vocab_size
    raise UserError(
        f"a tokenizer of {data.tokenizer!r} has as many tokens as the text says, and a plan reads "
        "none: give the number with --model.vocab-size, such as 65 for tinyshakespeare's characters"
    )


def largest_batch(config: RunConfig, mesh: Mesh) -> LargestBatch:
    """The batch of a settled configuration that takes the most.

    A language run's batches are all alike. Of a translation run's buckets (`PairBatches`) it is the
    one with the most FLOPs, which grow as its memory does, with B L and B L².

    Raises:
        UserError: when the batch does not split over the mesh.
    """
    place = batch_sharding(mesh)

    def filled(kinds: Any, shape: tuple[int, int]) -> Any:
        return jax.tree.map(lambda kind: jax.ShapeDtypeStruct(shape, kind, sharding=place), kinds)

    if isinstance(config, LanguageConfig):
        check_batch_size(config.batch_size, config.accumulation, mesh)
        shape = config.batch_size, config.model.context_length
        arrays = filled(Batch(jnp.int32, jnp.int32, jnp.bool_), shape)
        return LargestBatch(arrays, shape, gpt_flops(config.model, *shape))

    shapes = batch_shapes(
        longest_pair(config), config.batch_tokens, row_multiple(config, mesh), config.batch_size
    )
    flops = {(B, L): transformer_flops(config.model, B, L, L) for B, L in shapes}
    shape = max(flops, key=lambda shape: flops[shape])
    arrays = filled(PairBatch(jnp.int32, jnp.bool_, jnp.int32, jnp.int32, jnp.bool_), shape)
    return LargestBatch(arrays, shape, flops[shape])


def longest_pair(config: TranslationConfig) -> int:
    """Most places that a pair can take: by the limits of the data, else by the model's context."""
    context, data = config.model.context_length, config.data
    if isinstance(data, TextPairsConfig):
        return min(context, data.max_tokens + 1)  # the target has a start token
    if isinstance(data, CopyConfig):
        return min(context, data.max_length + 1)
    return context
