"""Help fits the terminal, no word is cut, and a recipe shows the usual flags or all."""

import dataclasses
import re
from typing import Literal

import pytest

from jaxformer.cli.arguments import RunPath, parse
from jaxformer.cli.help import reflowed, table
from jaxformer.cli.main import COMMANDS, main
from jaxformer.cli.recipes import RECIPES, load_recipe


@dataclasses.dataclass(frozen=True)
class Inner:
    """What belongs together."""

    weight: float | None = None
    """How heavy, as a number of kilograms, which are the unit of weights everywhere in this help of
    a program for tests."""
    quiet: bool = False
    """Say nothing."""
    loud: bool = True
    """Say everything."""


@dataclasses.dataclass(frozen=True)
class Options:
    """An example of a command's options."""

    run: RunPath
    """Directory."""
    kind: Literal["greedy", "beam"] = "greedy"
    """Which."""
    inner: Inner = Inner()


def shown(capsys, function) -> str:
    with pytest.raises(SystemExit) as stop:
        function()
    out, err = capsys.readouterr()
    assert (stop.value.code, err) == (0, "")
    return out


def helped(capsys, *words: str, usual=()) -> str:
    description = "Write text, with\nmany words, that say much.\n\n    p runs/a --flag --another"
    return shown(capsys, lambda: parse(Options, words, "p", description, usual=usual))


def test_the_whole_help_of_a_command(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    assert (
        helped(capsys, "runs/a", "-h")
        == """\
usage: p RUN [FLAGS]

Write text, with many words, that say much.

    p runs/a --flag --another

arguments:
  RUN  Directory.

flags:
  --kind {greedy,beam}  Which. (default: greedy)

inner: What belongs together.
  --inner.weight FLOAT      How heavy, as a number of
                            kilograms, which are the unit of
                            weights everywhere in this help
                            of a program for tests.
  --inner.quiet             Say nothing.
  --inner.loud, --inner.no-loud
                            Say everything. (default: True)
"""
    )


def test_the_usual_flags_and_all(capsys):
    usual = helped(capsys, "--help", usual=("--inner.*",))
    assert set(re.findall(r"^  (--\S+)", usual, re.M)) == {
        *("--inner.weight", "--inner.quiet", "--inner.loud,"),
    }
    assert usual.endswith("\n\nall 4 flags: p --help-all\n")
    assert helped(capsys, "--help-all", usual=("--inner.*",)) == helped(capsys, "--help-all")
    assert helped(capsys, "--help-all") == helped(capsys, "--help")


@pytest.mark.parametrize("columns", ["1", "40", "80", "200"])
@pytest.mark.parametrize(
    "words",
    [
        *([name, "--help"] for name in COMMANDS),
        *(["train", name, "--help-all"] for name in RECIPES),
        ["plan", "gpt_char", "--help"],
        ["--help"],
    ],
    ids=" ".join,
)
def test_help_fits_and_cuts_no_word(words, columns, capsys, monkeypatch):
    """Longer lines than the terminal are commands to copy or one word, and no longer than 80."""
    commands = "\n".join(load_recipe(name).__doc__ for name in RECIPES)

    def lines(columns: str) -> list[str]:
        monkeypatch.setenv("COLUMNS", columns)
        status = 0
        try:
            main(words)
        except SystemExit as stop:
            status = stop.code
        out, err = capsys.readouterr()
        assert (status, err) == (0, "")
        return out.splitlines()

    for line in lines(columns):
        if len(line) > max(40, int(columns)):
            assert len(line) <= 80
            assert " " not in line.strip() or (line[:4] == "    " and line in commands)
    split = [word for line in lines(columns) for word in line.split()]
    assert split == [word for line in lines("100000") for word in line.split()]


def test_paragraphs_are_filled_and_commands_stay(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    text = """A line that is
    short, then one of more words than there is room for.

        command --flag value \\
            --more-of-this-command than-there-is-room-for

    The end-of-it,
    with-a-long-word-with-hyphens-that-is-not-cut-at-them."""
    assert (
        reflowed(re.sub("^    ", "", text, flags=re.M))
        == """\
A line that is short, then one of more
words than there is room for.

    command --flag value \\
        --more-of-this-command than-there-is-room-for

The end-of-it,
with-a-long-word-with-hyphens-that-is-not-cut-at-them."""
    )


def test_descriptions_stand_beside_names_or_below(monkeypatch):
    rows = [("a", "first one"), ("b" * 30, "second")]
    monkeypatch.setenv("COLUMNS", "80")
    assert table(rows).splitlines() == [
        f"  a{' ' * 25}first one",
        f"  {'b' * 30}",
        f"{' ' * 28}second",
    ]
    monkeypatch.setenv("COLUMNS", "40")
    assert table(rows).splitlines() == [
        *("  a   first one", f"  {'b' * 30}", "      second"),
    ]


def test_a_table_of_nothing_and_of_names_alone():
    assert table([]) == ""
    assert table([("--quiet", ""), ("b" * 30, "")]).splitlines() == ["  --quiet", f"  {'b' * 30}"]


def test_a_list_of_choices_longer_than_tyros_boxes_is_whole(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    names = tuple(f"a_preset_with_a_long_name_{number}" for number in range(14))
    kind = dataclasses.field(default=names[3])
    options = dataclasses.make_dataclass(
        "Options", [("preset", Literal[names], kind), ("steps", int, 3)]
    )
    text = shown(capsys, lambda: parse(options, ["--help"], "p", "Train."))
    assert max(map(len, text.splitlines())) <= 60
    flags = " ".join(text.split()).partition("flags: ")[2]
    assert (
        flags == f"--preset {{{', '.join(names)}}} (default: {names[3]}) --steps INT (default: 3)"
    )
