"""The table of the kinds of runs. A new kind is one file of this room and one row here."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxformer.config import RunConfig
from jaxformer.errors import UserError
from jaxformer.models.functional import abstract_model, merge
from jaxformer.tasks.language_modeling import DECODER, LANGUAGE
from jaxformer.tasks.masked_language import MASKED_LANGUAGE
from jaxformer.tasks.task import Kind, StepCost, Task
from jaxformer.tasks.translation import TRANSLATION
from jaxformer.training.objectives import Objective

KINDS: Mapping[str, Kind] = {
    "gpt": LANGUAGE,
    "decoder": DECODER,
    "bert": MASKED_LANGUAGE,
    "transformer_text": TRANSLATION,
    "transformer_numbers": TRANSLATION,
    "transformer_copy": TRANSLATION,
}
"""By the kind that a run's config names (`jaxformer.config.RUN_CONFIGS`)."""


def kind_of(config: RunConfig) -> Kind:
    """What a run of this configuration does."""
    return KINDS[config.kind]


def step_cost(config: RunConfig, batch: Any) -> StepCost:
    """Tokens and floating-point operations of a step with this batch."""
    return StepCost(int(batch.mask.sum()), kind_of(config).flops(config, batch))


def with_objective(task: Task, objective: Objective, mesh: Mesh) -> Task:
    """The task with another objective to lower; its validation stays the kind's own loss.

    Raises:
        UserError: the objective does not return a summed loss and a number of tokens.
    """
    spec = task.spec
    graphdef, shapes = abstract_model(spec.model, spec.config.model)
    batch = kind_of(spec.config).batch_shapes(spec.config, mesh)[0]
    dropout_key = jax.random.key(0) if spec.config.model.dropout_rate > 0 else None
    found = jax.eval_shape(
        lambda params, batch: objective(merge(graphdef, params), batch, dropout_key), shapes, batch
    )
    name = _name(objective)
    if not (isinstance(found, tuple) and [*map(_kind_of_number, found)] == ["float", "int"]):
        raise UserError(
            f"objective {name} returns {found}: return the loss summed over the tokens that count, "
            "and their number, an integer"
        )
    return dataclasses.replace(
        task, spec=dataclasses.replace(spec, objective=objective, own_objective=name)
    )


def _kind_of_number(value: Any) -> str:
    """`float` or `int` of one number; an empty word of anything else."""
    if getattr(value, "shape", None) != ():
        return ""
    kinds = {"float": jnp.floating, "int": jnp.integer}
    return next((name for name, kind in kinds.items() if jnp.issubdtype(value.dtype, kind)), "")


def _name(objective: Objective) -> str:
    while isinstance(objective, functools.partial):
        objective = objective.func
    return getattr(objective, "__name__", type(objective).__name__)
