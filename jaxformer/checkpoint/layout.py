"""What a directory of checkpoints holds: steps, manifests, verified hashes; no array is loaded."""

import contextlib
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from jaxtyping import PyTree

from jaxformer import manifest
from jaxformer.errors import UserError
from jaxformer.manifest import CorruptionError

PARAMS, OPTIMIZER = "params", "optimizer"
"""The items of a train state's checkpoint."""
SAVING, TRASH, DAMAGED = ".saving-", ".trash-", ".damaged-"
"""What the names of unfinished and damaged steps begin with."""
_SHOWN_CHARACTERS = 400


def steps(directory: Path) -> list[int]:
    """Steps of the complete checkpoints, oldest first; their files are not read."""
    numbers = all_steps(directory)
    return [step for step in numbers if (directory / str(step) / manifest.FILE).is_file()]


def all_steps(directory: Path) -> list[int]:
    """Everything named like a step, complete or damaged, in order."""
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"cannot read {directory}: {error.strerror}: name another one") from error
    return sorted(int(name) for name in names if name.isdecimal() and str(int(name)) == name)


def verify(directory: Path, step: int, items: Collection[str] | None = None) -> dict[str, Any]:
    """The manifest of a step whose items, by default all, are what was written."""
    content = read_manifest(directory, step)
    with _naming(step):
        manifest.verify(directory / str(step), items)
    return content


def read_manifest(directory: Path, step: int) -> dict[str, Any]:
    """The manifest of a step; no other file is read."""
    with _naming(step):
        content = manifest.read(directory / str(step))
        if content["step"] != step:
            raise CorruptionError(f"{manifest.FILE} is that of step {content['step']}")
    if "items" not in content:
        raise UserError(
            f"checkpoint {step} in {directory} was written by an earlier jaxformer, parameters and "
            "optimizer in one: use that version to read it, or train again in another --run-dir"
        )
    return content


@contextlib.contextmanager
def _naming(step: int) -> Iterator[None]:
    """Put the step into what a manifest reports."""
    try:
        yield
    except CorruptionError as fault:
        raise CorruptionError(f"checkpoint {step} cannot be used: {fault}") from None


def leaves_of(items: Mapping[str, PyTree]) -> dict[str, dict[str, str]]:
    """Item -> path of each of its leaves -> dtype and shape."""
    return {
        item: {
            jax.tree_util.keystr(path): f"{leaf.dtype}{list(leaf.shape)}"
            for path, leaf in jax.tree.leaves_with_path(tree)
        }
        for item, tree in items.items()
    }


def brief(error: BaseException) -> str:
    """The message of an error in one line."""
    return " ".join(str(error).split())[:_SHOWN_CHARACTERS] or type(error).__name__
