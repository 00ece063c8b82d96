"""The cache of prepared data: one directory for each preparation, complete or absent.

Everything in it can be rebuilt from its sources, so any of it may be removed at any time.
"""

import contextlib
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from jaxformer.errors import UserError
from jaxformer.user_cache import default_cache

UNFINISHED = ".unfinished-"
ABANDONED_AFTER = 24 * 3600.0  # seconds after which the files of a killed preparation are removed

Prepared = TypeVar("Prepared")

logger = logging.getLogger(__name__)


def load_or_build(
    key: str,
    read: Callable[[Path], Prepared | None],
    write: Callable[[Path], None],
    cache: Path | None = None,
) -> Prepared:
    """Load the directory `key` of the cache with `read`, or build it with `write` and load it.

    `read` returns None for a directory that is missing, incomplete or damaged; `write` creates the
    directory it is given. The directory appears in the cache complete or not at all, even if this
    process is killed or another process builds the same one. A damaged directory is rebuilt.

    Raises UserError if the cache cannot be written, and what `write` raises.
    """
    cache = cache or default_cache()
    directory = cache / key
    found = read(directory)
    if found is not None:
        return found
    if directory.exists():
        logger.warning("%s is damaged; rebuilding it", directory)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        remove_abandoned(cache)
        with tempfile.TemporaryDirectory(
            dir=cache, prefix=UNFINISHED, ignore_cleanup_errors=True
        ) as scratch:
            made = Path(scratch) / "made"
            write(made)
            prepared = read(made)  # its maps outlive the renaming, and even removal
            install(made, directory, aside=Path(scratch) / "damaged")
    except OSError as error:
        raise UserError(
            f"the cache {cache} cannot be written ({error.strerror}): "
            "make room, or set JAXFORMER_CACHE to another directory"
        ) from error
    assert prepared is not None, "what was just written reads back"
    return prepared


def install(made: Path, directory: Path, aside: Path) -> None:
    """Rename `made` to `directory`; if another process was faster, its equal directory stays."""
    with contextlib.suppress(FileNotFoundError):
        os.rename(directory, aside)
    try:
        os.rename(made, directory)
    except OSError:
        if not directory.exists():
            raise


def remove_abandoned(cache: Path) -> None:
    """Remove what processes killed during a preparation left behind."""
    for path in cache.glob(f"{UNFINISHED}*"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > ABANDONED_AFTER:
                shutil.rmtree(path, ignore_errors=True)
