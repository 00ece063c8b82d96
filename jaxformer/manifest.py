"""Manifests: a file in a directory that says what every other file there must be, byte for byte.

`manifest.jsonl` has two lines: a JSON object, whose `files` maps each relative path to its size and
SHA-256, and the SHA-256 of that line, so that damage to the manifest itself shows as well. Whoever
writes it adds what else belongs to the directory, under other keys.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxformer.errors import UserError

FILE = "manifest.jsonl"
"""Name of the manifest in its directory."""


class CorruptionError(UserError):
    """A file is not what was written; the message names the first such file and its fault."""


def write(directory: Path, content: Mapping[str, Any]) -> None:
    """Seal a directory whose other files are complete; it survives a power failure from then on.

    Raises:
        OSError: a file cannot be read or written, or there is a manifest already.
    """
    files = {name: _fingerprint(directory / name) for name in _names(directory)}
    with open(directory / FILE, "xb") as file:
        file.write(_sealed(json.dumps({**content, "files": files}).encode()))
        file.flush()
        os.fsync(file.fileno())
    sync(directory)


def read(directory: Path) -> dict[str, Any]:
    """The manifest's own content; the other files are not looked at.

    Raises:
        CorruptionError: there is no manifest, or its bytes changed.
    """
    try:
        data = (directory / FILE).read_bytes()
    except OSError as error:
        raise CorruptionError(f"{FILE} cannot be read ({error.strerror})") from error
    line = data.partition(b"\n")[0]
    if data != _sealed(line):
        raise CorruptionError(f"{FILE} has other bytes than were written")
    return json.loads(line)


def verify(directory: Path) -> dict[str, Any]:
    """The manifest's content, after every file was read and found as it says.

    Raises:
        CorruptionError: a file, or the manifest, is changed, cut, missing or a stranger.
    """
    content = read(directory)
    written = content["files"]
    for name in sorted(written.keys() | _names(directory)):
        if name not in written:
            raise CorruptionError(f"{name} does not belong there")
        try:
            fingerprint = _fingerprint(directory / name)
        except OSError as error:
            raise CorruptionError(f"{name} cannot be read ({error.strerror})") from error
        if fingerprint != written[name]:
            raise CorruptionError(f"{name} has other bytes than were written")
    return content


def sync(directory: Path) -> None:
    """Make the names in a directory survive a power failure."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sealed(line: bytes) -> bytes:
    return line + b'\n"' + hashlib.sha256(line).hexdigest().encode() + b'"\n'


def _names(directory: Path) -> set[str]:
    """Relative paths of all files but the manifest."""
    walk = os.walk(directory)  # unlike rglob, silent about what a writer deletes meanwhile
    found = {(Path(top) / name).relative_to(directory) for top, _, names in walk for name in names}
    return {path.as_posix() for path in found} - {FILE}


def _fingerprint(path: Path) -> list[int | str]:
    """Size in bytes, SHA-256."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return [file.tell(), digest]
