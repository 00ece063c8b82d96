"""The user's cache: prepared data and compiled programs, which may be removed at any time.

It is `$JAXFORMER_CACHE`, else `$XDG_CACHE_HOME/jaxformer`, else `~/.cache/jaxformer`.
Source: https://specifications.freedesktop.org/basedir-spec/latest/.
"""

import os
from pathlib import Path

from jaxformer.errors import UserError


def default_cache() -> Path:
    """The cache that the environment names; UserError if it names none and no home directory."""
    if chosen := os.environ.get("JAXFORMER_CACHE"):
        return Path(chosen)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxformer"
    except RuntimeError as error:
        raise UserError(
            "the cache has no home directory: set JAXFORMER_CACHE to a directory"
        ) from error
