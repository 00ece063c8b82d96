"""The files of `--json` and `--html`."""

import contextlib
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from jaxformer.atomic import atomic_write
from jaxformer.errors import UserError


@contextlib.contextmanager
def text_output(path: Path | None, flag: str) -> Iterator[Callable[[str], None]]:
    """A function that writes the text of the file that a flag names; without a path, nothing.

    The file is opened before the work in the block begins: one that cannot be written is refused at
    once, and one that is there stays as it is until the block ends without an error.

    Raises:
        UserError: when the file cannot be one.
        OSError: naming the file, when it cannot be written.
    """
    if path is None:
        yield lambda text: None
        return
    if not path.parent.is_dir():
        raise UserError(f"{flag} {path}: {path.parent} is not a directory: create it first")
    if path.exists() and not path.is_file():
        raise UserError(f"{flag} {path} is not a file: name a file")
    with atomic_write(path) as file:
        yield lambda text: _write(file, text)


def _write(file: IO[bytes], text: str) -> None:
    file.write(text.encode())


@contextlib.contextmanager
def json_output(path: Path | None) -> Iterator[Callable[[Any], None]]:
    """The same for values and the file of `--json`.

    JSON has no number for what is not finite: it becomes null.
    """
    with text_output(path, "--json") as write:
        yield lambda values: write(json.dumps(_finite(values), indent=2, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    """The value with None for each number in it that is not finite."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
