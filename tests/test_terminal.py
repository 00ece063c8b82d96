"""Lines on a terminal end between words; elsewhere they stay as they are."""

import io

import pytest

from jaxformer.cli.main import main
from jaxformer.terminal import fitted, say


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


LINE = "validation loss 3.1031 nats per token · perplexity 22.27 · 1.313 bits per byte · a_long/p"


@pytest.mark.parametrize("columns", [1, 20, 33, 80, 200])
def test_no_word_is_divided_and_none_is_lost(columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = fitted(LINE, Terminal()).split("\n")
    assert " ".join(lines) == LINE
    assert all(len(line) <= columns or " " not in line for line in lines)
    assert (len(lines) == 1) == (columns >= len(LINE))


def test_elsewhere_a_line_stays_one(monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    stream = io.StringIO()
    say(LINE, stream)
    assert stream.getvalue() == LINE + "\n"


def test_lines_keep_their_indent_and_those_that_fit_their_blanks(monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    stream = Terminal()
    say("memory    1.00 KiB\n\n  FLOPs of a device in a step", stream)
    shown = "memory    1.00 KiB\n\n  FLOPs of a device\n  in a step\n"
    assert stream.getvalue() == shown


def test_a_refusal_on_a_terminal_ends_between_words(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    stream = Terminal()
    monkeypatch.setattr("sys.stderr", stream)
    with pytest.raises(SystemExit):
        main(["metrics", "some_directory_that_is_not_there"])
    lines = stream.getvalue().splitlines()
    assert len(lines) > 1
    assert all(len(line) <= 40 for line in lines)
    assert "some_directory_that_is_not_there" in " ".join(lines).split()
