"""config.json: a run's whole configuration, read back exactly, unknown keys refused."""

import dataclasses
import functools
import json
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import cattrs

from jaxformer.atomic import atomic_write
from jaxformer.config import RUN_CONFIGS, Remat, RunConfig
from jaxformer.config.data import TOKENIZERS
from jaxformer.errors import UserError, perhaps

ConfigT = TypeVar("ConfigT", bound=RunConfig)


def config_to_json(config: RunConfig) -> dict[str, Any]:
    """The configuration as JSON values; `config_from_json` is its inverse."""
    return {"kind": config.kind, **_converter().unstructure(config)}


def config_from_json(values: Any, source: str) -> RunConfig:
    """The configuration that these JSON values describe.

    Raises:
        UserError: naming `source` and all that is unknown, missing or out of range.
    """
    if not isinstance(values, dict) or "kind" not in values:
        raise UserError(f"{source} is not a run's configuration: name a --run-dir of jaxformer")
    values = dict(values)
    kind = values.pop("kind")
    if not isinstance(kind, str) or kind not in RUN_CONFIGS:
        known = ", ".join(RUN_CONFIGS)
        raise UserError(f"{source} describes a {kind!r}: name a run of a kind known here, {known}")
    try:
        return _converter().structure(values, RUN_CONFIGS[kind])
    except UserError:
        raise
    except Exception as error:
        problems = cattrs.transform_error(error, path="config")
        refusal = _user_error_in(error)
        detail = str(refusal) if refusal else "; ".join(problems)
        raise UserError(f"{source} cannot be read: {detail}; restore the file") from None


def save_config(config: RunConfig, path: Path) -> None:
    """Write config.json."""
    with atomic_write(path) as file:
        file.write(json.dumps(config_to_json(config), indent=2).encode() + b"\n")


def load_config(path: Path) -> RunConfig:
    """Read config.json.

    Raises:
        UserError: when there is none, or it is not what `save_config` writes.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing: name the --run-dir of a training run") from None
    except (ValueError, RecursionError):
        raise UserError(f"{path} is not JSON: restore the file") from None
    return config_from_json(values, str(path))


def with_values(config: ConfigT, path: Path) -> ConfigT:
    """The configuration with the values of a JSON file in their places.

    The file is a run's config.json or a part of one: `{"steps": 9, "model": {"width": 64}}`.

    Raises:
        UserError: naming the file, and the key that is unknown, of another type or out of range.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"))
    except (FileNotFoundError, IsADirectoryError) as error:
        fault = "a directory" if isinstance(error, IsADirectoryError) else "missing"
        raise UserError(
            f"{path} is {fault}: name a file of settings, such as a run's config.json"
        ) from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}: mend the file") from None
    if not isinstance(values, dict):
        raise UserError(f'{path} holds no settings: write them as {{"steps": 9, ...}}')
    kind = values.pop("kind", config.kind)
    if kind != config.kind:
        raise UserError(
            f"{path} describes a {kind!r}, and the recipe trains a {config.kind!r}: choose the "
            "recipe that made it"
        )
    try:
        return _replaced(config, values)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _replaced(config: Any, values: Mapping[str, Any], prefix: str = "") -> Any:
    types: dict[str, Any] = {field.name: field.type for field in dataclasses.fields(config)}
    changes = {}
    for name, value in values.items():
        key = prefix + name
        if name not in types:
            meant = perhaps(name, types, prefix)
            raise UserError(f"{key} is unknown{meant}; choose from {', '.join(types)}")
        own, shown = getattr(config, name), json.dumps(value)
        if dataclasses.is_dataclass(own):
            if not isinstance(value, dict):
                raise UserError(f"{key} is {shown}: write its settings as {{...}}")
            changes[name] = _replaced(own, value, f"{key}.")
            continue
        try:
            changes[name] = _converter().structure(value, types[name])
        except Exception:
            raise UserError(f"{key} is {shown}: give {_described(types[name])}") from None
    return dataclasses.replace(config, **changes)


def _described(hint: Any) -> str:
    """What JSON values a type has, in words."""
    if typing.get_origin(hint) is Annotated:
        return _described(typing.get_args(hint)[0])
    if typing.get_origin(hint) is Literal:
        return f"one of {', '.join(typing.get_args(hint))}"
    if typing.get_origin(hint) is tuple:
        return f"a list of {len(typing.get_args(hint))} whole numbers"
    if typing.get_args(hint):  # X | None
        return " or ".join(map(_described, typing.get_args(hint)))
    return {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "a text",
        Path: "a path",
        type(None): "null",
    }[hint]


MAY_CHANGE = {"eval_every", "model.attention", "model.scan_layers"}
"""Settings with which a run can be resumed whatever they were."""


def differences(ours: RunConfig, theirs: RunConfig) -> list[str]:
    """Each flag whose value differs, as `--model.width 64 (the run has 128)`.

    The mesh, the implementation of attention, whether layers are scanned, the checkpoints and the
    times of validations may change when a run is resumed, so they are left out. So are more steps,
    which extend a run, and paths of the data: a run knows its text and tokenizer by their hash,
    wherever they lie.
    """
    if type(ours) is not type(theirs):
        return [f"a {ours.kind} run (the run is {theirs.kind})"]
    found = []
    for name in _flags(type(ours)):
        if name in MAY_CHANGE or name.startswith(("mesh.", "checkpoint.")):
            continue
        our, their = _value(ours, name), _value(theirs, name)
        if name == "steps" and our > their:
            continue
        if our != their and not (_is_place(name, our) and _is_place(name, their)):
            found.append(f"--{name.replace('_', '-')} {our} (the run has {their})")
    return found


def _is_place(name: str, value: Any) -> bool:
    """Whether a setting says where data lie; None is the place of the default, or no file."""
    if name == "data.tokenizer":
        return value not in TOKENIZERS
    return name.startswith("data.") and (value is None or isinstance(value, Path))


def _flags(config_type: Any, prefix: str = "") -> list[str]:
    names = []
    for field in dataclasses.fields(config_type):
        nested = dataclasses.is_dataclass(field.type)
        names += _flags(field.type, f"{prefix}{field.name}.") if nested else [prefix + field.name]
    return names


def _value(config: Any, name: str) -> Any:
    for part in name.split("."):
        config = getattr(config, part)
    return config


def _user_error_in(error: BaseException) -> UserError | None:
    if isinstance(error, UserError):
        return error
    inner = error.exceptions if isinstance(error, BaseExceptionGroup) else ()
    return next((found for found in map(_user_error_in, inner) if found), None)


@functools.cache
def _converter() -> cattrs.Converter:
    converter = cattrs.Converter(forbid_extra_keys=True)
    converter.register_unstructure_hook(Path, str)
    converter.register_structure_hook(Path, _path)
    for number in (int, float, bool, str):
        converter.register_structure_hook(number, functools.partial(_strict, number))
    converter.register_structure_hook_func(lambda hint: hint == Remat, _remat)
    return converter


def _path(value: Any, hint: Any) -> Path:
    """An empty one would be the working directory."""
    if value == "":
        raise ValueError("is empty")
    return Path(_strict(str, value, hint))


def _remat(value: Any, _: Any) -> Remat:
    """Before it had three values it was true or false."""
    value = {True: "full", False: "none"}[value] if type(value) is bool else value
    if value not in typing.get_args(Remat):
        raise ValueError(f"{value!r} is none of {', '.join(typing.get_args(Remat))}")
    return value


def _strict(wanted: Any, value: Any, _: Any) -> Any:
    """JSON's own types only: cattrs alone would take "12" for 12 and 1.9 for 1."""
    if type(value) is wanted or (wanted is float and type(value) is int):
        return wanted(value)
    raise TypeError(f"{value!r} is not a {wanted.__name__}")
