"""Lines on a terminal: broken between words. In a file or a pipe they stay as they are."""

import os
import shutil
import sys
import textwrap
from typing import IO


def moves(stream: IO[str]) -> bool:
    """Whether a line of the stream can be drawn again: a terminal, and not the simplest."""
    return stream.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")


def fitted(text: str, stream: IO[str]) -> str:
    """The text as the stream shows it: a terminal's lines end between words, no word is divided."""
    if not stream.isatty():
        return text
    width = shutil.get_terminal_size().columns
    return "\n".join(_broken(line, width) for line in text.split("\n"))


def say(text: str, stream: IO[str] | None = None) -> None:
    """Print a text that fits the terminal, on standard output by default."""
    stream = stream or sys.stdout
    print(fitted(text, stream), file=stream, flush=True)


def _broken(line: str, width: int) -> str:
    if len(line) <= width:
        return line
    indent = line[: len(line) - len(line.lstrip())]
    lines = textwrap.wrap(
        line,
        width,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
        expand_tabs=False,
        replace_whitespace=False,
    )
    return "\n".join(lines)
