"""The progress of a training run: a moving line on a terminal, plain lines elsewhere."""

import errno
import os
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self, TextIO

from jaxformer.runtime.signals import leave_closed_terminal

if TYPE_CHECKING:
    import rich.progress

PLAIN_SECONDS = 10.0
"""Time between two lines where the output is not a terminal."""
TIMED_SECONDS = 3.0
"""Time after the first step's end until the whole duration is estimated."""


class Progress:
    """Step, loss, learning rate, speed and the time that is left.

    On a terminal one line is redrawn, in colours unless NO_COLOR is set; elsewhere a line is
    printed for the first and the last step and every `PLAIN_SECONDS`, with the time of day.
    """

    def __init__(
        self,
        total_steps: int,
        start_step: int = 0,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Steps count from `start_step`, where a resumed run starts, to `total_steps`."""
        self.total_steps = total_steps
        self._stream = stream or sys.stdout
        self._clock = clock
        self._began = clock()
        self._paced_from: tuple[int, float] | None = None
        self._estimated = False
        self._printed_at = -float("inf")
        moves = self._stream.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")
        self._live = _live_line(self._stream, total_steps, start_step) if moves else None

    def update(
        self,
        step: int,
        *,
        loss: float,
        learning_rate: float | None = None,
        tokens_per_second: float | None = None,
    ) -> None:
        """Show that `step` steps are done."""
        now = self._clock()
        parts = [f"step {step}/{self.total_steps}", f"loss {loss:.4f}"]
        if learning_rate is not None:
            parts.append(f"lr {learning_rate:.2e}")
        if tokens_per_second is not None:
            parts.append(f"{_short(tokens_per_second)} tokens/s")
        if self._paced_from is None:
            self._paced_from = (step, now)  # the first step is not representative: it compiles
        elif step > self._paced_from[0]:
            timed = now - self._paced_from[1]
            left = timed / (step - self._paced_from[0]) * (self.total_steps - step)
            parts.append(f"{_duration(left)} left")
            if not self._estimated and timed >= TIMED_SECONDS:
                self._estimated = True
                if left >= 90:
                    self.print(f"about {left / 60:.0f} minutes at the pace of this machine")
        parts.append(f"{_duration(now - self._began)} elapsed")
        self._show(step, " · ".join(parts), now)

    def print(self, line: str) -> None:
        """Print a line that is not redrawn, such as a validation loss."""
        try:
            self._print(line)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            leave_closed_terminal()

    def _print(self, line: str) -> None:
        if self._live is not None:
            self._live.console.print(
                line, markup=False, emoji=False, highlight=False, soft_wrap=True
            )
        else:
            print(line, file=self._stream, flush=True)

    def _show(self, step: int, line: str, now: float) -> None:
        if self._live is not None:
            self._live.update(self._live.task_ids[0], completed=step, line=line)
        elif step == self.total_steps or now - self._printed_at >= PLAIN_SECONDS:
            self._printed_at = now
            self.print(f"{line} · {time_of_day()}")

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()


def time_of_day() -> str:
    """The local time, 14:03:22."""
    return time.strftime("%H:%M:%S")


def _live_line(stream: TextIO, total_steps: int, start_step: int) -> "rich.progress.Progress":
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn
    from rich.table import Column

    console = Console(file=stream)
    text = TextColumn(
        "{task.fields[line]}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis")
    )
    bar = [BarColumn(bar_width=20)] if console.width >= 110 else []
    live = Progress(*bar, text, console=console)
    live.add_task("train", total=total_steps, completed=start_step, line="compiling")
    return live


def _short(number: float) -> str:
    """Three digits and a prefix: 45.1 k, 1.2 M, 830."""
    for prefix, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.1f} {prefix}"
    return f"{number:.0f}"


def _duration(seconds: float) -> str:
    """1:02 or 3:04:05."""
    minutes, second = divmod(max(0, round(seconds)), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
