"""Lines on a terminal end between words; elsewhere they stay as they are."""

import fcntl
import io
import os
import struct
import termios

import pytest

from jaxformer.cli.main import main
from jaxformer.terminal import cells, fitted, padded, say, width, wrap


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


def test_the_width_is_that_of_the_stream_it_is_asked_of(monkeypatch):
    """Not that of standard output, which may be a pipe or another terminal."""
    monkeypatch.delenv("COLUMNS", raising=False)
    controller, device = os.openpty()
    fcntl.ioctl(device, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 33, 0, 0))
    with os.fdopen(controller, "rb"), os.fdopen(device, "w") as stream:
        assert width(stream) == 33
        assert max(map(len, fitted(LINE, stream).split("\n"))) <= 33
        fcntl.ioctl(device, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 0, 0, 0))
        assert width(stream, otherwise=110) == 110  # a terminal that does not know
        monkeypatch.setenv("COLUMNS", "50")
        assert width(stream) == 50
    for unset in ("", "0x", "9" * 5000):
        monkeypatch.setenv("COLUMNS", unset)
        assert width(io.StringIO()) == 80


def test_wide_characters_take_two_columns_and_accents_none():
    texts = {"": 0, "abc": 3, "中文": 4, "\uff46\uff55": 4, "e\u0301": 1, "日本 x": 6, "naïve ·": 7}
    assert {text: cells(text) for text in texts} == texts
    assert padded("中", 4) == "中  "
    assert wrap("中文 日本 abc", 7).split("\n") == ["中文", "日本", "abc"]
    assert wrap("中文 日本 abc", 9).split("\n") == ["中文 日本", "abc"]


def test_lines_begin_as_told_and_blanks_between_words_stay():
    assert wrap("one two  three", 10, "- ", "  ").split("\n") == ["- one two", "  three"]
    assert wrap("one two  three", 14, "- ", "  ").split("\n") == ["- one two", "  three"]
    assert wrap("one two  three", 16, "- ", "  ") == "- one two  three"
    assert wrap("", 10, "- ") == ""
