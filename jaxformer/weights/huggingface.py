"""A directory of a Hugging Face model: which family its config.json names, where its tensors are.

    config.json                                   what the model is, by its `model_type`
    model.safetensors                             the tensors
    model.safetensors.index.json, model-0000...   or several files; the index alone says which
    tokenizer.json                                what made its tokens

Pickled files (pytorch_model.bin) are never opened.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxformer.errors import UserError, perhaps
from jaxformer.weights.families import bert, gpt2, llama, marian
from jaxformer.weights.files import LazyTensors, open_tensors
from jaxformer.weights.settings import Family

FAMILIES: Mapping[str, Family] = {
    family.model_type: family
    for family in (gpt2.FAMILY, bert.FAMILY, marian.FAMILY, *llama.FAMILIES)
}
"""By the `model_type` of config.json."""
CONFIG, TENSORS = "config.json", "model.safetensors"
INDEX = f"{TENSORS}.index.json"


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        UserError: it cannot be read, or holds something else.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): name a whole model") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error}): restore the file") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} is no JSON object: restore the file")
    return values


def family_of(values: Mapping[str, Any], path: Path) -> Family:
    """The family that a config.json names.

    Raises:
        UserError: it names none, or one that is unknown here.
    """
    known = ", ".join(FAMILIES)
    name = values.get("model_type")
    if not isinstance(name, str):
        raise UserError(f"{path} has no model_type: add the one that it is, of {known}")
    if name not in FAMILIES:
        raise UserError(
            f"{path} has the model_type {name!r}{perhaps(name, FAMILIES)}, which is unknown here: "
            f"choose a model of {known}"
        )
    return FAMILIES[name]


def model_tensors(directory: Path) -> LazyTensors:
    """The tensors of a directory: those of its index, or else of its one file.

    Raises:
        UserError: there is neither, or they cannot be read.
    """
    for name in (INDEX, TENSORS):
        if (directory / name).exists():
            return open_tensors(directory / name)
    pickled = sorted(path.name for path in directory.glob("*.bin"))
    there = f"; {pickled[0]} is a pickle, which is never opened" if pickled else ""
    raise UserError(
        f"{directory} has no {TENSORS}{there}: save the model with safetensors, as transformers' "
        "save_pretrained does"
    )
