"""The kinds of language runs: a model learns the text of a corpus, window by window."""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from jaxformer.batch import Batch
from jaxformer.config import DecoderConfig, GPTConfig, ModelConfig, TextRunConfig
from jaxformer.data.batches import TrainingBatches, evaluation_batches
from jaxformer.data.shards import prepare
from jaxformer.models.decoder import Decoder
from jaxformer.models.gpt import GPT
from jaxformer.sharding.mesh import check_batch_size
from jaxformer.tasks.flops import training_flops
from jaxformer.tasks.resolve import resolve_config
from jaxformer.tasks.task import Kind, Task, TrainSpec
from jaxformer.training.objectives import next_token, next_token_accuracy
from jaxformer.training.optimizer import text_optimizer
from jaxformer.weights.families import gpt2, llama
from jaxformer.weights.twin import TWIN

MODELS: Mapping[type[ModelConfig], type[nnx.Module]] = {GPTConfig: GPT, DecoderConfig: Decoder}
"""The language model of each config."""


def language_task(config: TextRunConfig, mesh: Mesh) -> Task:
    """Prepare the text and resolve the configuration with it.

    Raises:
        UserError: when configuration, text and mesh do not go together.
    """
    check_batch_size(config.batch_size, config.accumulation, mesh)
    data = prepare(config.data)
    config = resolve_config(config, data.tokenizer.vocab_size)
    length = config.model.context_length
    batch_tokens = config.batch_size * length

    def validation() -> Iterator[Batch]:
        rows = config.batch_size // config.accumulation  # as many as a training step holds at once
        num_batches = math.ceil(config.eval_tokens / batch_tokens) * config.accumulation
        return itertools.islice(evaluation_batches(data.val, rows, length), num_batches)

    validation()  # refuses a text that is too short before the first step
    return Task(
        spec=language_spec(config),
        data=data,
        description=(data.description,),
        batches=TrainingBatches(data.train, config.batch_size, length, config.seed),
        validation=validation,
    )


def language_spec(config: TextRunConfig) -> TrainSpec:
    """The config's model, cross-entropy of the next token, the config's optimizer and schedule."""
    return TrainSpec(
        config=config,
        model=MODELS[type(config.model)],
        objective=next_token,
        eval_objective=next_token,
        accuracy=next_token_accuracy,
        optimizer=text_optimizer(config.optimizer, config.steps),
    )


def language_flops(config: TextRunConfig, batch: Batch) -> float:
    """Of a batch (B, L), B L (6 (N (4D² + 2DF) + DV) + 12 N D L) for a GPT."""
    rows, length = batch.targets.shape
    return training_flops(MODELS[type(config.model)], config.model, rows, lambda path: length)


def language_batch_shapes(config: TextRunConfig, mesh: Mesh) -> Sequence[Batch]:
    """The one shape that all batches have.

    Raises:
        UserError: when the batch does not split over the mesh.
    """
    check_batch_size(config.batch_size, config.accumulation, mesh)
    shape = config.batch_size, config.model.context_length
    tokens = jax.ShapeDtypeStruct(shape, jnp.int32)
    return [Batch(tokens, tokens, jax.ShapeDtypeStruct(shape, jnp.bool_))]


DECAYS = {"cosine": "the cosine now ends", "stable": "the rate now decays to its floor"}
"""What schedules do in a run of more steps."""

LANGUAGE = Kind(
    command="sample",
    task=language_task,
    spec=lambda config, tokenizer_size: language_spec(config),
    num_specials=lambda config: 0,
    flops=language_flops,
    batch_shapes=language_batch_shapes,
    tables=(TWIN, gpt2.HUGGING_FACE),
    extended=lambda config: f"{DECAYS[config.optimizer.schedule]} at step {config.steps:,}",
)
DECODER = dataclasses.replace(LANGUAGE, tables=(TWIN, llama.TIED, llama.UNTIED))
