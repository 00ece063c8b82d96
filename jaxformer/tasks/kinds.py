"""The table of the kinds of runs. A new kind is one file of this room and one row here."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxformer.config import (
    CopyTranslationConfig,
    NumbersTranslationConfig,
    RunConfig,
)
from jaxformer.tasks.language_modeling import LANGUAGE
from jaxformer.tasks.task import Kind, StepCost
from jaxformer.tasks.translation import TRANSLATION

KINDS: Mapping[str, Kind] = {
    kind.name: kind
    for kind in (
        LANGUAGE,
        TRANSLATION,
        dataclasses.replace(
            TRANSLATION, name="transformer_numbers", config_type=NumbersTranslationConfig
        ),
        dataclasses.replace(
            TRANSLATION, name="transformer_copy", config_type=CopyTranslationConfig
        ),
    )
}


def kind_of(config: RunConfig) -> Kind:
    """The row of a configuration, by its type."""
    return next(kind for kind in KINDS.values() if type(config) is kind.config_type)


def step_cost(config: RunConfig, batch: Any) -> StepCost:
    """Tokens and floating-point operations of a step with this batch."""
    return StepCost(int(batch.mask.sum()), kind_of(config).flops(config, batch))
