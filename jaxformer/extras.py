"""Packages that some commands alone need: the extras of the installation, in pyproject.toml."""

import importlib
from collections.abc import Mapping, Sequence

from jaxformer.errors import UserError

EXTRAS: Mapping[str, Sequence[str]] = {
    "plot": ("matplotlib",),
    "translate": ("sacrebleu",),
    "numbers": ("num2words", "babel"),
    "gguf": ("gguf",),
}
"""The packages of each extra, as they are imported."""


def missing(extra: str) -> str:
    """What is missing of an extra, and how to install it; empty if nothing is.

    A package that is there and cannot be imported is missing too, such as one built for another
    numpy.
    """
    absent = [name for name in EXTRAS[extra] if not _imports(name)]
    if not absent:
        return ""
    verb = "is" if len(absent) == 1 else "are"
    return f'{" and ".join(absent)} {verb} not installed: pip install "jaxformer[{extra}]"'


def _imports(name: str) -> bool:
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True


def require_extra(extra: str, purpose: str) -> None:
    """Refuse what needs an extra that is not there, before its work is begun.

    Args:
        extra: a key of `EXTRAS`.
        purpose: what needs it, the beginning of the line.

    Raises:
        UserError: naming the packages that are missing and how to install them.
    """
    if line := missing(extra):
        raise UserError(f"{purpose}: {line}")
