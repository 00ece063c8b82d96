"""Manifests: a file in a directory that lists size and hash of every other file there.

`manifest.jsonl` has two lines: a JSON object, whose `files` maps each relative path to its size and
SHA-256, and the SHA-256 of that line, so that damage to the manifest itself is detected as well.
Other keys of the object hold what its writer adds.
"""

import hashlib
import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from jaxformer.errors import UserError

FILE = "manifest.jsonl"
"""Name of the manifest in its directory."""
BEGUN = f".{FILE}"
"""Name of a manifest that is being rewritten, or whose writer was killed."""


class CorruptionError(UserError):
    """A file is not what was written; the message names the first such file and its fault."""


def write(directory: Path, content: Mapping[str, Any]) -> None:
    """Seal a directory whose other files are complete; from then on it survives a power failure.

    Raises:
        OSError: a file cannot be read or written, or there is a manifest already.
    """
    files = {name: _fingerprint(directory / name) for name in _names(directory)}
    with open(directory / FILE, "xb") as file:
        file.write(_sealed(json.dumps({**content, "files": files}).encode()))
        file.flush()
        os.fsync(file.fileno())
    sync(directory)


def rewrite(directory: Path, content: Mapping[str, Any]) -> None:
    """Replace what `read` gives, its `files` included; killed, the old manifest stays.

    Raises:
        OSError: the directory or the disk does not let it be written.
    """
    with open(directory / BEGUN, "wb") as file:
        file.write(_sealed(json.dumps(content).encode()))
        file.flush()
        os.fsync(file.fileno())
    os.replace(directory / BEGUN, directory / FILE)
    sync(directory)


def read(directory: Path) -> dict[str, Any]:
    """The manifest's own content; no other file is read.

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


def verify(directory: Path, parts: Collection[str] | None = None) -> dict[str, Any]:
    """The manifest's content, after files were read and found to be those that were written.

    Files that were not written by then do not matter: see `strangers`.

    Args:
        directory: what was sealed.
        parts: subdirectories to verify; files of the others are not opened, those in
            `directory` itself always are. By default everything is verified.

    Raises:
        CorruptionError: one of these files, or the manifest, is changed, cut or missing.
    """
    content = read(directory)
    written = content["files"]
    for name in sorted(name for name in written if _in(parts, name)):
        try:
            fingerprint = _fingerprint(directory / name)
        except OSError as error:
            raise CorruptionError(f"{name} cannot be read ({error.strerror})") from error
        if fingerprint != written[name]:
            raise CorruptionError(f"{name} has other bytes than were written")
    return content


def strangers(directory: Path, parts: Collection[str] | None = None) -> list[str]:
    """Files of a sealed directory, or its `parts`, that were not written with it: a .DS_Store."""
    found = _names(directory) - read(directory)["files"].keys()
    return sorted(name for name in found if _in(parts, name))


def sync(directory: Path) -> None:
    """Make the names in a directory survive a power failure."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sealed(line: bytes) -> bytes:
    return line + b'\n"' + hashlib.sha256(line).hexdigest().encode() + b'"\n'


def _in(parts: Collection[str] | None, name: str) -> bool:
    part, slash, _ = name.partition("/")
    return parts is None or not slash or part in parts


def _names(directory: Path) -> set[str]:
    """Relative paths of all files but the manifest, finished or begun."""
    walk = os.walk(directory)  # unlike rglob, silent about files deleted during the walk
    found = {(Path(top) / name).relative_to(directory) for top, _, names in walk for name in names}
    return {path.as_posix() for path in found} - {FILE, BEGUN}


def _fingerprint(path: Path) -> list[int | str]:
    """Size in bytes, SHA-256."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return [file.tell(), digest]
