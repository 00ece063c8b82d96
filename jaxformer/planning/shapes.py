"""A run without its data: how many tokens it will have, and the largest batch it can meet.

What a plan needs of the data, taken from the configuration alone: no text is read, no tokenizer
trained. Where the configuration leaves a number open that only the text knows, it has to be given.
"""

from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from jaxformer.config import RunConfig
from jaxformer.errors import UserError
from jaxformer.sharding.mesh import batch_sharding
from jaxformer.tasks.kinds import kind_of
from jaxformer.tasks.resolve import resolve_config
from jaxformer.tasks.task import TrainSpec


class LargestBatch(NamedTuple):
    """The batch that a step takes the most memory and work for."""

    arrays: Any
    """Its shapes, types and shardings in the place of arrays."""
    shape: tuple[int, int]
    """Rows and length (B, L)."""
    flops: float
    """Forward and backward over it, padding included."""


def abstract_spec(config: RunConfig) -> TrainSpec:
    """How a run learns whose tokenizer has the size that its configuration asks for.

    Raises:
        UserError: when only the text knows the number of tokens.
    """
    kind, size = kind_of(config), tokenizer_size(config)
    return kind.spec(resolve_config(config, size + kind.num_specials(config)), size)


def tokenizer_size(config: RunConfig) -> int:
    """Tokens of the run's tokenizer.

    A number of the model's own (`--model.vocab-size`) is taken for the tokenizer's too.
    """
    if config.model.vocab_size:
        return max(config.model.vocab_size - kind_of(config).num_specials(config), 1)
    size = config.data.tokenizer_size
    if size is None:
        raise UserError(
            f"a tokenizer of {config.data.tokenizer!r} has as many tokens as the text says, and a "
            "plan reads none: give the number with --model.vocab-size, such as 65 for "
            "tinyshakespeare's characters"
        )
    return size


def largest_batch(config: RunConfig, mesh: Mesh) -> LargestBatch:
    """The batch of a resolved configuration that takes the most FLOPs.

    Memory grows as they do, with B L and B L².

    Raises:
        UserError: when the batch does not split over the mesh.
    """
    kind, sharding = kind_of(config), batch_sharding(mesh)
    largest = max(kind.batch_shapes(config, mesh), key=lambda batch: kind.flops(config, batch))
    arrays = jax.tree.map(lambda x: x.update(sharding=sharding), largest)
    return LargestBatch(arrays, largest.targets.shape, kind.flops(config, largest))
