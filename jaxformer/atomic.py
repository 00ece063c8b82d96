"""Files and directories that are written as a whole or not at all."""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which replaces `path` when the block ends without an error.

    It is written under a temporary name in the same directory, forced to disk, then renamed. Of a
    symbolic link the target is replaced.

    Raises:
        OSError: naming `path`, when the directory or the disk does not let it be written, or it is
            a device or a pipe; the old content of `path` is unharmed. One about another file, from
            the block, stays as it is.
    """
    path = Path(os.path.realpath(path)) if path.is_symlink() else path
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise OSError(errno.EINVAL, "Not a regular file", str(path))
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        if error.filename is not None and str(error.filename) != str(temporary):
            raise  # about another file, which the block works on
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """A directory to fill under a temporary name, which becomes `path` when the block ends.

    Nothing of it stays if the block ends with an error. `path` is new, or an empty directory.

    Raises:
        OSError: naming `path`, when there is something already, or it cannot be created.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        yield temporary
        temporary.rename(path)
    except OSError as error:
        if error.filename is not None and str(error.filename) != str(temporary):
            raise  # about another file, which the block works on
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
