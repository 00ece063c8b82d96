"""A configuration with nothing left open: the vocabulary has a size, paths hold from anywhere."""

import dataclasses
from pathlib import Path
from typing import Any, TypeVar

from jaxformer.config import RunConfig
from jaxformer.errors import UserError

ConfigT = TypeVar("ConfigT", bound=RunConfig)


def resolve_config(config: ConfigT, needed: int) -> ConfigT:
    """The configuration of a run whose data have `needed` tokens, as config.json keeps it.

    Raises:
        UserError: when the model was given a smaller vocabulary.
    """
    chosen = config.model.vocab_size
    if 0 < chosen < needed:
        raise UserError(
            f"model.vocab-size {chosen} is less than the tokenizer's {needed}: "
            f"choose {needed} or more, or 0 to take the tokenizer's; a run that is resumed had a "
            "text of fewer tokens: restore it, or start a new run"
        )
    model: Any = dataclasses.replace(config.model, vocab_size=chosen or needed)
    data, weights = paths_in_full(config.data), config.init_from
    if weights is not None:  # a link stays one: beside an index by that name are its parts
        weights = weights.absolute()
    return dataclasses.replace(config, model=model, data=data, init_from=weights)


def paths_in_full(data: Any) -> Any:
    """The data's configuration with its paths resolved, a tokenizer's file among them."""
    values = {field.name: getattr(data, field.name) for field in dataclasses.fields(data)}
    paths: dict[str, Any] = {
        name: value.resolve() for name, value in values.items() if isinstance(value, Path)
    }
    if Path(values.get("tokenizer", "")).is_file():
        paths["tokenizer"] = str(Path(values["tokenizer"]).resolve())
    return dataclasses.replace(data, **paths)
