"""The task of a translation run: an encoder-decoder learns pairs, in batches of like lengths."""

import math
from collections.abc import Iterator

from jax.sharding import Mesh

from jaxformer.batch import PairBatch, SpecialTokens
from jaxformer.config import TranslationConfig
from jaxformer.data.pair_batches import PairBatches, evaluation_pair_batches
from jaxformer.data.translation import PreparedPairs, prepare_pairs
from jaxformer.errors import UserError
from jaxformer.models.transformer import Transformer
from jaxformer.sharding.mesh import check_batch_size, num_batch_shards
from jaxformer.tasks.flops import transformer_flops
from jaxformer.tasks.resolve import resolve_config
from jaxformer.tasks.task import StepCost, Task, TrainSpec
from jaxformer.training.objectives import translation, translation_cross_entropy
from jaxformer.training.optimizer import adam

ROWS = 8
"""Batches have a multiple of so many rows, so that they are the same on 1, 2, 4 and 8 devices."""


def translation_task(config: TranslationConfig, mesh: Mesh) -> Task:
    """Prepare the pairs and settle the configuration on them.

    Raises:
        UserError: when configuration, pairs and mesh do not go together.
    """
    data = prepare_pairs(config.data)
    specials = data.specials
    config = resolve_config(config, specials.end + 1)
    check_lengths(data, config.model.context_length)
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

    def work(batch: PairBatch) -> StepCost:
        (rows, source_length), target_length = batch.source.shape, batch.targets.shape[1]
        flops = transformer_flops(config.model, rows, source_length, target_length)
        return StepCost(int(batch.mask.sum()), flops)

    return Task(
        method=translation_method(config, specials),
        data=data,
        description=(
            data.description,
            f"batches of {size}, of {len(batches.shapes)} different shapes; "
            f"{batches.padding_share:.1%} of them padding",
            *smoothing_note(config),
        ),
        batches=batches,
        validation=validation,
        work=work,
        num_shapes=len(batches.shapes),
        row_multiple=rows if config.batch_size is None else None,
    )


def smoothing_note(config: TranslationConfig) -> tuple[str, ...]:
    """What tells the two losses of a run apart."""
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


def translation_method(config: TranslationConfig, specials: SpecialTokens) -> TrainSpec:
    """A Transformer, smoothed cross-entropy of the target, Adam with the schedule of 2017."""
    return TrainSpec(
        config=config,
        model=Transformer,
        objective=translation(config.loss, config.label_smoothing, specials.padding),
        eval_objective=translation_cross_entropy,
        optimizer=adam(config.optimizer, config.model.width),
    )


def check_lengths(data: PreparedPairs, context_length: int) -> None:
    """Refuse pairs that are longer than the model's positions reach."""
    longest = max(int(pairs.lengths.max()) for pairs in (data.train, data.val))
    if longest > context_length:
        raise UserError(
            f"the longest pair has {longest} tokens, more than model.context-length "
            f"{context_length}: choose --model.context-length {longest} or more, or leave such "
            "pairs out, of files by --data.max-tokens"
        )
