"""The table of the kinds of runs. A new kind is one file of this room and one row here."""

from collections.abc import Mapping
from typing import Any

from jaxformer.config import RunConfig
from jaxformer.tasks.language_modeling import LANGUAGE
from jaxformer.tasks.task import Kind, StepCost
from jaxformer.tasks.translation import TRANSLATION

KINDS: Mapping[str, Kind] = {
    "gpt": LANGUAGE,
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
