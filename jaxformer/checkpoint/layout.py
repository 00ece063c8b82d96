"""What a directory of checkpoints holds: steps, manifests, verified hashes; no array is loaded."""

import contextlib
import os
import re
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
TRIAL = f"{SAVING}trial"
"""Name of the save that is tried when a directory is opened for writing."""
_SHOWN_CHARACTERS = 400
_REMOTE = re.compile(r"(^/(?:gs|s3|az|hf)(?=/)|(?<=/)[A-Za-z][A-Za-z0-9+.-]*:(?=/))")
"""How Orbax writes the root of remote storage, and the start of an address as a path has it."""


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


def check_path(directory: Path, *, to_read: bool = False) -> None:
    """Refuse a directory whose path Orbax or TensorStore takes for something else.

    Of a path with `*`, `?` or `[` Orbax saves nothing that can be read, or another directory that
    the path matches as a pattern; `gs:` and the root directories of `_REMOTE` are remote storage to
    it; TensorStore takes a backslash for a separator, and UTF-8 alone. Reading expands no patterns.

    Raises:
        UserError: naming the path and what it must not contain.
    """
    path = os.fspath(directory.absolute())
    pattern = re.search(r"\\" if to_read else r"[*?\[\\]", path)
    remote = _REMOTE.search(path)
    if path != path.encode(errors="ignore").decode():
        fault = "is not UTF-8"
    elif pattern:
        fault = f"contains {pattern[0]}"
    elif remote:
        fault = f"is an address by its {remote[1]}"
    else:
        return
    raise UserError(
        f"{directory} cannot hold checkpoints, since its path {fault}: choose another --run-dir, "
        "or rename the directory"
    )


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
    """The message of an error in one line; of a long one both ends, for the cause is at either."""
    message = " ".join(str(error).split()) or type(error).__name__
    message = re.sub(r" \[tensorstore_spec.*", "", message)  # settings, which follow the cause
    if len(message) > _SHOWN_CHARACTERS:
        half = _SHOWN_CHARACTERS // 2
        message = f"{message[:half]} ... {message[-half:]}"
    return message
