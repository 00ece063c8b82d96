"""Factories: functions of the user's that return a model or inputs, named on a command line."""

import contextlib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from jaxformer.errors import UserError, perhaps


def load_factory(name: str, flag: str) -> Callable[[], Any]:
    """The function that `file.py:function` or `package.module:function` names.

    Raises:
        UserError: when there is no such file, module or function, or importing it fails.
    """
    place, _, function = name.rpartition(":")
    if not place or not function:
        raise UserError(
            f"{flag} {name!r} names no function: write file.py:function or package.module:function"
        )
    with user_code(f"importing {place} of {flag}"):
        module = _file(place, flag) if place.endswith(".py") else _module(place, flag)
    found = getattr(module, function, None)
    if not callable(found):
        known = [key for key, value in vars(module).items() if callable(value)]
        raise UserError(f"{flag}: {place} has no function {function}{perhaps(function, known)}")

    def build() -> Any:
        with user_code(f"{flag} {name}"):
            return found()

    return build


@contextlib.contextmanager
def user_code(what: str) -> Iterator[None]:
    """Turns what the user's code raises into one line with its own file and line.

    Raises:
        UserError: whatever the block raises.
    """
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if not _is_library(frame.filename)]
        place = f" ({own[-1].filename}:{own[-1].lineno})" if own else ""
        lines = [line for line in str(error).splitlines() if line.strip()]
        words = lines[0] if lines else "no message"
        raise UserError(f"{what} raised {type(error).__name__}: {words}{place}") from error


def _is_library(file: str) -> bool:
    return "site-packages" in file or str(Path(__file__).parent) in file or file.startswith("<")


def _file(place: str, flag: str) -> ModuleType:
    path = Path(place).resolve()
    if not path.is_file():
        raise UserError(f"{flag}: file {place} not found")
    name = path.stem
    loaded = sys.modules.get(name)
    if loaded is not None and getattr(loaded, "__file__", None) == str(path):
        return loaded
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))  # files beside it are imported by their names
    if loaded is not None or importlib.util.find_spec(name) is None:
        name = f"port_{abs(hash(str(path)))}_{name}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UserError(f"{flag}: {place} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _module(place: str, flag: str) -> ModuleType:
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name is None or not place.startswith(error.name):
            raise
        raise UserError(f"{flag}: there is no module {place}") from error
