"""The kind of a BERT run: the masked tokens of a text are learned, window by window.

Windows are cut from the text as it is, without the tokens that BERT's own data begin and end with.
"""

import itertools
import math
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxformer.batch import MaskedBatch
from jaxformer.config import MaskedLanguageConfig
from jaxformer.data.masked_batches import (
    MaskedTrainingBatches,
    Masking,
    masked_evaluation_batches,
)
from jaxformer.data.shards import prepare
from jaxformer.models.bert import Bert
from jaxformer.sharding.mesh import check_batch_size
from jaxformer.tasks.flops import training_flops
from jaxformer.tasks.language_modeling import LANGUAGE
from jaxformer.tasks.resolve import resolve_config
from jaxformer.tasks.task import Kind, Task, TrainSpec
from jaxformer.training.objectives import masked_token, masked_token_accuracy
from jaxformer.training.optimizer import text_optimizer
from jaxformer.weights.families import bert
from jaxformer.weights.twin import TWIN

VALIDATION = 0
"""Seed of the masks of a validation, the same in every run."""


def num_specials(config: MaskedLanguageConfig) -> int:
    """The mask token, unless it is one of the tokenizer's."""
    return 1 if config.data.mask_token is None else 0


def masking(config: MaskedLanguageConfig, tokenizer_size: int, seed: int) -> Masking:
    """How the run's tokens are masked."""
    own = config.data.mask_token
    mask_token = tokenizer_size if own is None else own
    return Masking(config.data.mask_share, mask_token, tokenizer_size, seed)


def masked_language_task(config: MaskedLanguageConfig, mesh: Mesh) -> Task:
    """Prepare the text and resolve the configuration with it.

    Raises:
        UserError: when configuration, text and mesh do not go together.
    """
    check_batch_size(config.batch_size, config.accumulation, mesh)
    data = prepare(config.data)
    size, length = data.tokenizer.vocab_size, config.model.context_length
    config = resolve_config(config, size + num_specials(config))

    def validation() -> Iterator[MaskedBatch]:
        rows = config.batch_size // config.accumulation  # as many as a training step holds at once
        batches = masked_evaluation_batches(
            data.val, rows, length, masking(config, size, VALIDATION)
        )
        num_batches = math.ceil(config.eval_tokens / (config.batch_size * length))
        return itertools.islice(batches, num_batches * config.accumulation)

    validation()  # refuses a text that is too short before the first step
    return Task(
        spec=masked_language_spec(config),
        data=data,
        description=(data.description, f"{config.data.mask_share:.0%} of the tokens are masked"),
        batches=MaskedTrainingBatches(
            data.train, config.batch_size, length, config.seed, masking(config, size, config.seed)
        ),
        validation=validation,
    )


def masked_language_spec(config: MaskedLanguageConfig) -> TrainSpec:
    """BERT, cross-entropy of the masked tokens, the config's optimizer and schedule."""
    return TrainSpec(
        config=config,
        model=Bert,
        objective=masked_token,
        eval_objective=masked_token,
        accuracy=masked_token_accuracy,
        optimizer=text_optimizer(config.optimizer, config.steps),
    )


def masked_language_flops(config: MaskedLanguageConfig, batch: MaskedBatch) -> float:
    """B L (6 (N (4D² + 2DF) + D² + DV) + 12 N D L) of a batch (B, L)."""
    rows, length = batch.targets.shape
    return training_flops(Bert, config.model, rows, lambda path: length)


def masked_language_batch_shapes(config: MaskedLanguageConfig, mesh: Mesh) -> Sequence[MaskedBatch]:
    """The one shape that all batches have.

    Raises:
        UserError: when the batch does not split over the mesh.
    """
    check_batch_size(config.batch_size, config.accumulation, mesh)
    shape = config.batch_size, config.model.context_length
    tokens, flags = (jax.ShapeDtypeStruct(shape, kind) for kind in (jnp.int32, jnp.bool_))
    return [MaskedBatch(tokens, tokens, flags, tokens, flags)]


MASKED_LANGUAGE = Kind(
    command="evaluate",
    task=masked_language_task,
    spec=lambda config, tokenizer_size: masked_language_spec(config),
    num_specials=num_specials,
    flops=masked_language_flops,
    batch_shapes=masked_language_batch_shapes,
    tables=(TWIN, bert.HUGGING_FACE),
    extended=LANGUAGE.extended,
)
