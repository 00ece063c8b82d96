"""The kinds of translation runs: an encoder-decoder learns pairs, in batches of like lengths."""

import math
import re
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxformer.batch import PairBatch, SpecialTokens
from jaxformer.config import TranslationConfig
from jaxformer.data.pair_batches import PairBatches, batch_shapes, evaluation_pair_batches
from jaxformer.data.pairs import TokenPairs
from jaxformer.data.translation import prepare_pairs, special_tokens_of
from jaxformer.errors import UserError
from jaxformer.models.transformer import Transformer
from jaxformer.sharding.mesh import check_batch_size, num_batch_shards
from jaxformer.tasks.flops import training_flops
from jaxformer.tasks.resolve import resolve_config
from jaxformer.tasks.task import Kind, Task, TrainSpec
from jaxformer.training.objectives import (
    translation,
    translation_accuracy,
    translation_cross_entropy,
)
from jaxformer.training.optimizer import adam
from jaxformer.weights.families import marian
from jaxformer.weights.twin import TWIN

ROWS = 8
"""Batches have a multiple of 8 rows, so that they are the same on 1, 2, 4 and 8 devices."""
NUM_SPECIALS = 3
"""Padding, start and end."""


def num_specials(config: TranslationConfig) -> int:
    """Special tokens that follow those of the tokenizer; a model from elsewhere has none."""
    return NUM_SPECIALS if getattr(config.data, "special_tokens", None) is None else 0


def translation_task(config: TranslationConfig, mesh: Mesh) -> Task:
    """Prepare the pairs and resolve the configuration with them.

    Raises:
        UserError: when configuration, pairs and mesh do not go together.
    """
    data = prepare_pairs(config.data)
    specials = data.specials
    config = resolve_config(config, data.tokenizer.vocab_size + num_specials(config))
    check_lengths(config.model.context_length, data.train, data.val)
    rows = row_multiple(config, mesh)
    size = f"at most {config.batch_tokens:,} tokens a side, but no fewer than {rows} pairs"
    if config.batch_size is not None:
        size = f"{config.batch_size:,} pairs"
    batches = PairBatches(
        data.train, specials, config.batch_tokens, rows, config.seed, config.batch_size
    )

    def validation() -> Iterator[PairBatch]:
        return evaluation_pair_batches(
            data.val, specials, config.batch_tokens, rows, config.batch_size
        )

    return Task(
        spec=translation_spec(config, specials),
        data=data,
        description=(
            data.description,
            f"batches of {size}, of {len(batches.shapes)} different shapes; "
            f"{batches.padding_share:.1%} of them padding",
            *smoothing_note(config),
        ),
        batches=batches,
        validation=validation,
        num_shapes=len(batches.shapes),
        row_multiple=rows if config.batch_size is None else None,
    )


def smoothing_note(config: TranslationConfig) -> tuple[str, ...]:
    """A line of the log where training and validation losses are not of one kind."""
    if config.label_smoothing == 0:
        return ()
    return (f"training losses have label smoothing {config.label_smoothing:g}, validation none",)


def row_multiple(config: TranslationConfig, mesh: Mesh) -> int:
    """What the numbers of rows of a run's batches are multiples of.

    Raises:
        UserError: when the run asks for a number of rows that does not split over the mesh.
    """
    rows = num_batch_shards(mesh) * config.accumulation
    if config.batch_size is None:
        return math.lcm(ROWS, rows)
    check_batch_size(config.batch_size, config.accumulation, mesh)
    return rows


def translation_spec(config: TranslationConfig, specials: SpecialTokens) -> TrainSpec:
    """A Transformer, smoothed cross-entropy of the target, Adam with the schedule of 2017."""
    return TrainSpec(
        config=config,
        model=Transformer,
        objective=translation(config.loss, config.label_smoothing, specials.padding),
        eval_objective=translation_cross_entropy,
        accuracy=translation_accuracy,
        optimizer=adam(config.optimizer, config.model.width),
    )


def check_lengths(context_length: int, *sides: TokenPairs) -> None:
    """Refuse pairs that are longer than the model's context."""
    longest = max(int(pairs.lengths.max()) for pairs in sides)
    if longest > context_length:
        raise UserError(
            f"the longest pair has {longest} tokens, more than model.context-length "
            f"{context_length}: choose --model.context-length {longest} or more, or leave such "
            "pairs out, of files by --data.max-tokens"
        )


def translation_flops(config: TranslationConfig, batch: PairBatch) -> float:
    """Of B pairs of M source and L target tokens each, padding included.

    Source tokens pass the 4D² + 2DF weights of N encoder blocks and the 2D² of the keys and values
    of N cross-attentions; target tokens 6D² + 2DF in N decoder blocks, and DV for the logits.
    """
    (rows, source_length), target_length = batch.source.shape, batch.targets.shape[1]
    of_source = re.compile(r"encoder/|.*cross_attention/(key|value)/")

    def tokens_through(path: str) -> int:
        return source_length if of_source.match(path) else target_length

    return training_flops(Transformer, config.model, rows, tokens_through)


def translation_batch_shapes(config: TranslationConfig, mesh: Mesh) -> Sequence[PairBatch]:
    """The shape of each bucket's batches (`PairBatches`), of the longest pairs that there may be.

    Raises:
        UserError: when the batch does not split over the mesh.
    """

    def batch(shape: tuple[int, int]) -> PairBatch:
        tokens, flags = (jax.ShapeDtypeStruct(shape, kind) for kind in (jnp.int32, jnp.bool_))
        return PairBatch(tokens, flags, tokens, tokens, flags)

    longest, rows = longest_pair(config), row_multiple(config, mesh)
    return [*map(batch, batch_shapes(longest, config.batch_tokens, rows, config.batch_size))]


def longest_pair(config: TranslationConfig) -> int:
    """Most places that a pair can take, by the data's limit, if any, and by the model's context."""
    limit, context = config.data.longest, config.model.context_length
    return context if limit is None else min(context, limit + 1)  # the target has a start token


TRANSLATION = Kind(
    command="translate",
    task=translation_task,
    spec=lambda config, size: translation_spec(config, special_tokens_of(config.data, size)),
    num_specials=num_specials,
    flops=translation_flops,
    batch_shapes=translation_batch_shapes,
    tables=(TWIN, marian.HUGGING_FACE),
    extended=lambda config: "the schedule of 2017 does not depend on the number of steps",
    label_smoothing=lambda config: config.label_smoothing,
)
