"""The progress of a training run: a moving line on a terminal, plain lines elsewhere."""

import errno
import sys
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Self, TextIO

from jaxformer.runtime.signals import leave_closed_terminal
from jaxformer.terminal import fitted, moves, width
from jaxformer.units import count, duration

if TYPE_CHECKING:
    import rich.progress

PLAIN_SECONDS = 10.0
"""Time between two lines where the output is not a terminal."""
SEPARATOR = " · "
TIMED_SECONDS = 3.0
"""Time after the first step's end until the whole duration is estimated."""


class Progress:
    """Step, loss, learning rate, speed and the time that is left.

    On a terminal one line with a bar is redrawn, in colours unless NO_COLOR is set; a narrow one
    shows less of it. Elsewhere a line is printed for the first and the last step and every
    `PLAIN_SECONDS`, with the time of day. The speed is a mean: over the steps since the last line,
    on a terminal over at most `PLAIN_SECONDS`.
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
        self._tokens, self._seconds = 0, 0.0
        self._bar = _bar_width(width(self._stream))
        self._live = None
        if moves(self._stream):
            self._live = _live_line(self._stream, total_steps, start_step, self._bar)

    def update(
        self,
        step: int,
        *,
        loss: float,
        learning_rate: float | None = None,
        tokens: int = 0,
        seconds: float | None = None,
    ) -> None:
        """Show that `step` steps are done; the last had so many tokens and took so long."""
        now = self._clock()
        parts = {"step": f"step {step}/{self.total_steps}", "loss": f"loss {loss:.4f}"}
        if learning_rate is not None:
            parts["rate"] = f"lr {learning_rate:.2e}"
        if seconds:
            self._tokens += tokens
            self._seconds += seconds
        if self._seconds:
            parts["speed"] = f"{count(self._tokens / self._seconds)} tokens/s"
        if self._paced_from is None:
            self._paced_from = (step, now)  # the first step is not representative: it compiles
        elif step > self._paced_from[0]:
            timed = now - self._paced_from[1]
            left = timed / (step - self._paced_from[0]) * (self.total_steps - step)
            parts["left"] = f"{duration(left)} left"
            if not self._estimated and timed >= TIMED_SECONDS:
                self._estimated = True
                if left >= 90:
                    self.print(f"about {left / 60:.0f} minutes at the pace of this machine")
        parts["elapsed"] = f"{duration(now - self._began)} elapsed"
        self._show(step, parts, now)

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
            fitting = fitted(line, self._stream)
            self._live.console.print(
                fitting, markup=False, emoji=False, highlight=False, soft_wrap=True
            )
        else:
            print(line, file=self._stream, flush=True)

    def _show(self, step: int, parts: dict[str, str], now: float) -> None:
        if self._live is not None:
            line = _shortened(parts, width(self._stream) - self._bar - 1)
            self._live.update(self._live.task_ids[0], completed=step, line=line)
            if self._seconds >= PLAIN_SECONDS:
                self._tokens, self._seconds = 0, 0.0
        elif step == self.total_steps or now - self._printed_at >= PLAIN_SECONDS:
            self._printed_at = now
            self._tokens, self._seconds = 0, 0.0
            self.print(SEPARATOR.join([*parts.values(), time_of_day()]))

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()


def time_of_day() -> str:
    """The local time, 14:03:22."""
    return time.strftime("%H:%M:%S")


def _live_line(
    stream: TextIO, total_steps: int, start_step: int, bar: int
) -> "rich.progress.Progress":
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn
    from rich.table import Column

    console = Console(file=stream)
    text = TextColumn(
        "{task.fields[line]}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis")
    )
    live = Progress(BarColumn(bar_width=bar), text, console=console)
    live.add_task("train", total=total_steps, completed=start_step, line="compiling")
    return live


def _bar_width(columns: int) -> int:
    """Columns of the bar of a terminal."""
    return 20 if columns >= 120 else 10


def _shortened(parts: Mapping[str, str], columns: int) -> str:
    """The parts that fit, the most important ones; the step and the loss are always there."""
    kept = dict(parts)
    for name in ("rate", "elapsed", "speed", "left"):
        if len(SEPARATOR.join(kept.values())) <= columns:
            break
        kept.pop(name, None)
    return SEPARATOR.join(kept.values())
