"""What a run shows while it runs."""

import io
import re

import pytest

from jaxformer.monitor.progress import Progress


@pytest.fixture(autouse=True)
def noon(monkeypatch):
    monkeypatch.setattr("jaxformer.monitor.progress.time_of_day", lambda: "12:00:00")


class Clock:
    """A clock that is advanced by hand."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def plain_lines(total: int, seconds_a_step: float, start: int = 0) -> list[str]:
    stream, clock = io.StringIO(), Clock()
    with Progress(total, start, stream, clock) as progress:
        for step in range(start + 1, total + 1):
            clock.now += seconds_a_step
            progress.update(step, loss=2.34561, learning_rate=6e-4, tokens=45_100, seconds=1.0)
    return stream.getvalue().splitlines()


def test_after_some_timed_steps_the_duration_is_estimated_once():
    lines = plain_lines(total=200, seconds_a_step=2.0)
    assert [line for line in lines if "minutes" in line] == [lines[1]]
    assert lines[1] == "about 7 minutes at the pace of this machine"  # 197 steps of 2 s
    assert not any("minutes" in line for line in plain_lines(total=30, seconds_a_step=2.0))


def test_a_line_every_ten_seconds_the_first_and_the_last():
    lines = plain_lines(total=100, seconds_a_step=2.5)
    assert lines.pop(1) == "about 4 minutes at the pace of this machine"
    assert [int(re.match(r"step (\d+)/100", line)[1]) for line in lines] == [*range(1, 98, 4), 100]


def test_a_line_says_all_of_it():
    shown = "loss 2.3456 · lr 6.00e-04 · 45.1 k tokens/s"
    lines = plain_lines(total=2000, seconds_a_step=10.0)
    assert lines[0] == f"step 1/2000 · {shown} · 0:10 elapsed · 12:00:00"
    assert lines[1] == "about 333 minutes at the pace of this machine"
    assert lines[400] == f"step 400/2000 · {shown} · 4:26:40 left · 1:06:40 elapsed · 12:00:00"
    assert lines[-1] == f"step 2000/2000 · {shown} · 0:00 left · 5:33:20 elapsed · 12:00:00"


def test_the_speed_is_the_mean_since_the_last_line():
    stream, clock = io.StringIO(), Clock()
    with Progress(8, 0, stream, clock) as progress:
        for step in range(1, 9):
            clock.now += 5.0
            seconds = None if step == 1 else float(step)
            progress.update(step, loss=2.0, tokens=70, seconds=seconds)
    speeds = [re.findall(r"([0-9.]+) tokens/s", line) for line in stream.getvalue().splitlines()]
    assert speeds == [[], ["28"], ["16"], ["11"], ["9"]]  # 140 / (2 + 3), 140 / (4 + 5), ...


def test_the_time_left_of_a_resumed_run_is_from_its_own_pace():
    assert "· 0:10 left ·" in plain_lines(total=100, seconds_a_step=10.0, start=90)[8]


def test_what_is_not_known_is_not_shown():
    stream = io.StringIO()
    Progress(5, stream=stream, clock=Clock()).update(5, loss=float("nan"))
    assert stream.getvalue() == "step 5/5 · loss nan · 0:00 elapsed · 12:00:00\n"


def test_a_printed_line_stays_as_it_is_or_ends_between_words_on_a_terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "42")
    line = "step 1: validation loss [bold] :smile: and more than fits the terminal"
    for stream, shown in (
        (io.StringIO(), line),
        (Terminal(), "step 1: validation loss [bold] :smile: and\nmore than fits the terminal\n"),
    ):
        with Progress(5, stream=stream, clock=Clock()) as progress:
            progress.update(1, loss=2.0)
            progress.print(line)
        assert shown in stream.getvalue()


def live_line(columns: int, monkeypatch) -> str:
    """The last line that a terminal of this width shows in the middle of a run."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("NO_COLOR", "1")
    stream, clock = Terminal(), Clock()
    with Progress(20_000, 0, stream, clock) as progress:
        for step in (1, 10_000):
            clock.now += 8_000.0
            progress.update(step, loss=2.34561, learning_rate=6e-4, tokens=499_980, seconds=0.5)
    return re.sub(r"\x1b\[\??[0-9]*[A-Za-z]", "", stream.getvalue()).strip().splitlines()[-1]


@pytest.mark.parametrize("columns", [50, 60, 79, 80, 100, 109, 120, 160])
def test_a_terminal_of_any_width_has_a_bar_and_whole_numbers(columns, monkeypatch):
    line = live_line(columns, monkeypatch)
    bar, shown = re.fullmatch(r"(━+ +) (step .*)", line).groups()
    assert len(bar) == (20 if columns >= 120 else 10)
    assert len(line) <= columns
    assert "…" not in line
    assert shown.startswith("step 10000/20000 · loss 2.3456")
    assert ("2:13:21 left" in shown) == (columns >= 60)
    assert ("1.0 M tokens/s" in shown) == (columns >= 79)
    assert ("4:26:40 elapsed" in shown) == (columns >= 100)
    assert ("lr 6.00e-04" in shown) == (columns >= 109)


def test_a_terminal_shows_one_line_that_moves(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.delenv("NO_COLOR", raising=False)
    stream = Terminal()
    with Progress(5, stream=stream, clock=Clock()) as progress:
        for step in range(1, 6):
            progress.update(step, loss=2.0)
    assert "step 5/5 · loss 2.0000 · 0:00 left" in stream.getvalue()
    assert "\x1b[2K" in stream.getvalue()  # erases the line before it draws it again
    assert re.search(r"\x1b\[38;5", stream.getvalue())  # in colours


def test_no_color_is_respected(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("NO_COLOR", "1")
    stream = Terminal()
    with Progress(5, stream=stream, clock=Clock()) as progress:
        progress.update(1, loss=2.0)
    assert not re.search(r"\x1b\[38;5", stream.getvalue())


def test_a_terminal_that_cannot_move_gets_plain_lines(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    stream = Terminal()
    with Progress(1, stream=stream, clock=Clock()) as progress:
        progress.update(1, loss=2.0)
    assert stream.getvalue() == "step 1/1 · loss 2.0000 · 0:00 elapsed · 12:00:00\n"


def test_standard_output_by_default(capsys):
    Progress(1, clock=Clock()).print("line")
    assert capsys.readouterr().out == "line\n"
