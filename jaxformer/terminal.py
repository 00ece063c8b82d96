"""Lines on a terminal: broken between words. In a file or a pipe they stay as they are."""

import os
import re
import sys
import unicodedata
from typing import IO


def moves(stream: IO[str]) -> bool:
    """Whether a line of the stream can be drawn again: a terminal, and not the simplest."""
    return stream.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")


def width(stream: IO[str], otherwise: int = 80) -> int:
    """Columns of the stream's terminal, or COLUMNS if it is set; `otherwise` if neither says."""
    try:
        return max(1, int(os.environ["COLUMNS"]))
    except (KeyError, ValueError):
        pass
    try:
        return os.get_terminal_size(stream.fileno()).columns or otherwise
    except (OSError, ValueError):  # no terminal, no file, or a closed one
        return otherwise


def cells(text: str) -> int:
    """Columns that a text takes: two for a wide character (中), none for one that joins another."""
    return sum(_cells(character) for character in text)


def padded(text: str, columns: int) -> str:
    """The text with blanks behind it up to so many columns."""
    return text + " " * (columns - cells(text))


def wrap(text: str, columns: int, first: str = "", later: str | None = None) -> str:
    """The text in lines of at most so many columns, broken at blanks; no word is divided.

    Lines begin with `first`, and with `later` if it differs from there on.
    """
    lines: list[str] = []
    for blanks, word in re.findall(r"(\s*)(\S+)", text, re.ASCII):
        if not lines:
            lines.append(first + blanks + word)
        elif cells(lines[-1] + blanks + word) <= columns:
            lines[-1] += blanks + word
        else:
            lines.append((first if later is None else later) + word)
    return "\n".join(lines)


def fitted(text: str, stream: IO[str]) -> str:
    """The text as the stream shows it: a terminal's lines end between words, no word is divided."""
    if not stream.isatty():
        return text
    columns = width(stream)
    return "\n".join(_broken(line, columns) for line in text.split("\n"))


def say(text: str, stream: IO[str] | None = None) -> None:
    """Print a text that fits the terminal, on standard output by default."""
    stream = stream or sys.stdout
    print(fitted(text, stream), file=stream, flush=True)


def _broken(line: str, columns: int) -> str:
    if cells(line) <= columns:
        return line
    indent = line[: len(line) - len(line.lstrip())]
    return wrap(line.lstrip(), columns, indent)


def _cells(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in ("W", "F") else 1
