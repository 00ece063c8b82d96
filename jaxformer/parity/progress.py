"""How far the proofs are: a status line on a terminal, plain lines now and then elsewhere."""

import sys
import time
from collections.abc import Callable
from typing import Self, TextIO

from jaxformer.monitor.progress import PLAIN_SECONDS
from jaxformer.terminal import moves
from jaxformer.units import duration


class Progress:
    """What is being proven, how many of how many, the time elapsed and left.

    The time left is that of as many proofs as are left at the pace so far. Where the stream is no
    terminal, a line is printed for the first proof and every `PLAIN_SECONDS`.
    """

    def __init__(self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic):
        self._stream = stream or sys.stderr
        self._clock = clock
        self._began = clock()
        self._printed_at = -float("inf")
        self._live = None
        if moves(self._stream):
            from rich.console import Console

            self._live = Console(file=self._stream).status("proving")

    def __call__(self, done: int, total: int, what: str) -> None:
        """Show that `done` of `total` are proven and what is next."""
        now = self._clock()
        elapsed = now - self._began
        line = f"{done}/{total} · {duration(elapsed)} elapsed"
        if done:
            line += f" · {duration(elapsed / done * (total - done))} left"
        line += f" · {what}"
        if self._live is not None:
            from rich.text import Text

            self._live.update(Text(line, no_wrap=True, overflow="ellipsis"))
        elif now - self._printed_at >= PLAIN_SECONDS:
            self._printed_at = now
            print(f"proving {line}", file=self._stream, flush=True)

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()
