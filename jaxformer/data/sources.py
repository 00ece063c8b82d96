"""Records of the files that a preparation was made from, so that it opens without reading them.

A record lies beside the prepared data in `sources/`, one per configuration: path, size, times and
inode of every file, and the time at which they were taken. While all of them are the same, so is
the text, as in git's index. Like there, a file that was changed shortly before the record might be
changed again within the same tick of the clock, so only a record of settled files is trusted.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from jaxformer.atomic import atomic_write

DIRECTORY = "sources"
SETTLED_NS = 2_000_000_000
"""Nanoseconds without a change before a record, which no file system's clock is coarser than."""


class Sources(NamedTuple):
    """The files of a configuration as they are at a moment."""

    name: str
    """Of the record: a hash of the configuration."""
    time_ns: int
    files: list[list[Any]]
    """Path, size, modification time, change time and inode of each."""


def look_at(data: Any, version: int, files: Iterable[Path]) -> Sources | None:
    """The files of a configuration now; None if one of them cannot be examined.

    `version` is that of the preparation's format.
    """
    now = time.time_ns()
    try:
        found = [(os.path.realpath(path), os.stat(path)) for path in files]
    except OSError:
        return None
    values = {field.name: _in_full(getattr(data, field.name)) for field in dataclasses.fields(data)}
    name = hashlib.sha256(f"{type(data).__name__} {version} {values}".encode()).hexdigest()[:32]
    stamps = [[path, s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino] for path, s in found]
    return Sources(f"{name}.json", now, stamps)


def find(cache: Path, sources: Sources) -> tuple[Path, str] | None:
    """The preparation of the cache that was made from these very files, and its description."""
    for path in cache.glob(f"*/{DIRECTORY}/{sources.name}"):
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError, RecursionError):
            record = json.loads(path.read_bytes())
            changed = max(max(mtime, ctime) for _, _, mtime, ctime, _ in sources.files)
            is_settled = changed + SETTLED_NS < record["time_ns"]
            if is_settled and record["files"] == sources.files:
                return path.parent.parent, str(record["description"])
    return None


def record(directory: Path, sources: Sources, description: str) -> None:
    """Write the record of a preparation; a cache that cannot be written does without."""
    path = directory / DIRECTORY / sources.name
    content = {"time_ns": sources.time_ns, "files": sources.files, "description": description}
    with contextlib.suppress(OSError):
        path.parent.mkdir(exist_ok=True)
        with atomic_write(path) as file:
            file.write(json.dumps(content).encode())


def _in_full(value: Any) -> Any:
    """A path, or a string that names a file, in full."""
    is_path = isinstance(value, Path) or (isinstance(value, str) and os.path.isfile(value))
    return os.path.realpath(value) if is_path else value
