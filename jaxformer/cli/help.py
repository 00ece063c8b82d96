"""The text of `--help`: paragraphs and rows that fit the terminal, broken between words only."""

import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatch
from typing import NamedTuple

from jaxformer.terminal import cells, padded, width, wrap

HELP = ("-h", "--help", "--help-all")
"""Words that ask for help, the last for all of it."""
NARROWEST = 40
"""Columns of help on a narrower terminal."""
TWO_COLUMNS = 60
"""Columns of a terminal from which on descriptions stand beside what they describe."""
BOXES = 120
"""Columns at which tyro's boxes are read: below each other, no word cut."""


class Flag(NamedTuple):
    """A flag, or an argument without one, and what it is for."""

    usage: str
    """As it is written, with what its value is: `--steps INT`."""
    text: str

    @property
    def name(self) -> str:
        return re.split(r"[ ,]", self.usage)[0]


class Group(NamedTuple):
    """Flags that belong together."""

    title: str
    text: str
    flags: Sequence[Flag]


def terminal_width() -> int:
    """Columns to fill."""
    return max(NARROWEST, width(sys.stdout))


def filled(text: str, first: str = "", later: str | None = None) -> str:
    """The text in lines that begin with `first`, and with `later` if it differs from there on."""
    return wrap(text, terminal_width(), first, later)


def reflowed(text: str) -> str:
    """Paragraphs filled to the width of the terminal; indented lines, such as commands, stay."""
    paragraphs: list[list[str]] = []
    for line in text.strip().splitlines():
        if line.startswith(" ") or not line:
            paragraphs += [[line], []]
        elif paragraphs:
            paragraphs[-1].append(line)
        else:
            paragraphs.append([line])
    return "\n".join(
        lines[0] if len(lines) == 1 and lines[0].startswith(" ") else filled(" ".join(lines))
        for lines in paragraphs
        if lines
    )


def table(rows: Iterable[tuple[str, str]]) -> str:
    """Names and descriptions in two columns, or below each other where there is little room."""
    rows = list(rows)
    column = min(24, max((cells(name) for name, _ in rows), default=0)) + 4
    if terminal_width() < TWO_COLUMNS:
        column = 6
    lines = []
    for name, text in rows:
        named, described = filled(name, "  ", "    "), filled(text, " " * column)
        if not described:
            lines.append(named)
        elif cells(named) + 2 <= column:
            lines.append(padded(named, column) + described[column:])
        else:
            lines += [named, described]
    return "\n".join(lines)


def program_help(
    prog: str, description: str, boxes: str, usual: Sequence[str], everything: bool
) -> str:
    """The help of a program.

    Args:
        prog: what the user typed to get here.
        description: of the program.
        boxes: the help that tyro prints, `BOXES` wide and not to a terminal.
        usual: patterns of the flags to show; all by default.
        everything: show all flags nevertheless.
    """
    groups = list(_groups(boxes))
    arguments = [flag for group in groups for flag in group.flags if not flag.name.startswith("-")]
    names = "".join(f" {flag.usage}" for flag in arguments)
    shown = [filled(f"usage: {prog}{names} [FLAGS]", "", " " * 11), reflowed(description)]
    if arguments:
        shown.append(f"arguments:\n{table(arguments)}")
    groups = [
        group._replace(flags=[flag for flag in group.flags if flag.name.startswith("--")])
        for group in groups
    ]
    flags = [flag for group in groups for flag in group.flags]
    chosen = [flag for flag in flags if any(fnmatch(flag.name, pattern) for pattern in usual)]
    if usual and not everything:
        shown.append(f"flags:\n{table(chosen)}")
        shown.append(filled(f"all {len(flags)} flags: {prog} --help-all"))
    else:
        shown += [
            f"{filled(f'{group.title}: {group.text}'.strip())}\n{table(group.flags)}"
            for group in groups
            if group.flags
        ]
    return "\n\n".join(shown)


def _groups(boxes: str) -> Iterator[Group]:
    """What tyro's boxes hold.

    Each is a title one column in, a rule, and rows two columns in: perhaps a description and a
    rule, then the flags, their descriptions beside them or below, further in. A list of choices
    ends with `}`, perhaps some rows later.
    """
    for box in re.split(r"^ (?=[a-z])", boxes, flags=re.MULTILINE)[1:]:
        title, _, *rows = (line.rstrip() for line in box.splitlines())
        text: list[str] = []
        flags: list[tuple[str, list[str]]] = []
        for row in rows:
            content = row[2:]
            if flags and flags[-1][0].count("{") > flags[-1][0].count("}"):  # a long list goes on
                flags[-1] = (flags[-1][0] + content.strip(), flags[-1][1])
            elif content.startswith(" ") and flags:
                flags[-1][1].append(content.strip())
            elif content.startswith("-") or title == "positional arguments":
                usage, _, beside = content.partition("  ")
                flags += [(usage, [beside.strip()])] if content.strip("-") else []
            else:
                text.append(content.strip())
        yield Group(
            "flags" if title == "options" else title.removesuffix(" options"),
            " ".join(text).strip(),
            [_flag(usage, " ".join(lines).strip()) for usage, lines in flags],
        )


def _flag(usage: str, text: str) -> Flag:
    """Without what says that a flag may be left out, as all may; a switch that is off turns on.

    A list of choices that is longer than a box may be broken between them.
    """
    if len(usage) > BOXES:
        usage = usage.replace(",", ", ")
    if text.endswith("(default: False)"):
        usage = usage.partition(",")[0]
    text = re.sub(r"\s*\((default: (None|False)|required|repeatable)\)$", "", text)
    return Flag(usage.replace("{None}|", "").replace("{None,", "{"), text)
