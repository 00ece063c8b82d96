"""The task of a language run: a GPT learns the text of a corpus, window by window."""

import itertools
import math
from collections.abc import Iterator

from jax.sharding import Mesh

from jaxformer.batch import Batch
from jaxformer.config import LanguageConfig
from jaxformer.data.batches import TrainingBatches, evaluation_batches
from jaxformer.data.corpus import prepare
from jaxformer.models.gpt import GPT
from jaxformer.sharding.mesh import check_batch_size
from jaxformer.tasks.flops import gpt_flops
from jaxformer.tasks.resolve import resolve_config
from jaxformer.tasks.task import StepCost, Task, TrainSpec
from jaxformer.training.objectives import next_token
from jaxformer.training.optimizer import adamw


def language_task(config: LanguageConfig, mesh: Mesh) -> Task:
    """Prepare the text and settle the configuration on it.

    Raises:
        UserError: when configuration, text and mesh do not go together.
    """
    check_batch_size(config.batch_size, config.accumulation, mesh)
    data = prepare(config.data)
    config = resolve_config(config, data.tokenizer.vocab_size)
    length = config.model.context_length
    batch_tokens = config.batch_size * length

    def validation() -> Iterator[Batch]:
        batches = evaluation_batches(data.val, config.batch_size, length)
        return itertools.islice(batches, math.ceil(config.eval_tokens / batch_tokens))

    def work(batch: Batch) -> StepCost:
        return StepCost(int(batch.mask.sum()), gpt_flops(config.model, *batch.targets.shape))

    return Task(
        method=language_method(config),
        data=data,
        description=(data.description,),
        batches=TrainingBatches(data.train, config.batch_size, length, config.seed),
        validation=validation,
        work=work,
    )


def language_method(config: LanguageConfig) -> TrainSpec:
    """A GPT, cross-entropy of the next token, AdamW with a cosine schedule."""
    return TrainSpec(
        config=config,
        model=GPT,
        objective=next_token,
        eval_objective=next_token,
        optimizer=adamw(config.optimizer, config.steps),
    )
