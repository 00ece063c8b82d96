"""A thread that ends the process when the run makes no progress: a step that hangs ends no more.

Where collectives wait for a process that is alive but stuck, nothing else would ever happen. The
stacks of all threads go to standard error and to a file; the exit status is `errors.TRY_AGAIN`.
"""

import contextlib
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from jaxformer.errors import TRY_AGAIN
from jaxformer.runtime import distributed

BatchT = TypeVar("BatchT")

COMPILING = 900.0
"""Seconds more for the first of each kind of thing, which is compiled."""


class Watchdog:
    """While the block lasts, whatever `expect` announces must be followed by the next in time."""

    def __init__(self, seconds: float, stacks: Path):
        self._seconds = seconds
        self._stacks = stacks
        self._met: set[str] = set()
        self._lock = threading.Lock()
        self._what = "the start"
        self._left = seconds + COMPILING
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def expect(self, kind: str, step: int) -> None:
        """Note that the run is alive, and what it does next."""
        with self._lock:
            self._what = f"{kind} {step}"
            self._left = self._seconds + (0.0 if kind in self._met else COMPILING)
            self._met.add(kind)

    def over(self, batches: Iterable[BatchT], kind: str, step: int) -> Iterator[BatchT]:
        """The batches, each of them a sign of progress."""
        for batch in batches:
            self.expect(kind, step)
            yield batch

    def _watch(self) -> None:
        period = min(1.0, self._seconds / 4)
        then = time.monotonic()
        while not self._done.wait(period):
            now = time.monotonic()
            with self._lock:
                # While the process is stopped (Ctrl-Z) time runs on, but not against it.
                self._left -= min(now - then, 2 * period)
                if self._left <= 0:
                    self._end()
            then = now

    def _end(self) -> None:
        line = (
            f"error: no progress for {self._seconds:g} s (--watchdog) in {self._what}; the stacks "
            f"are above and in {self._stacks}; start again with --resume, with a larger --watchdog "
            "if it takes so long"
        )
        try:
            with contextlib.suppress(OSError), self._stacks.open("w") as file:
                faulthandler.dump_traceback(file)
            with contextlib.suppress(OSError, ValueError):  # a full disk, a closed pipe
                faulthandler.dump_traceback(sys.__stderr__ or 2)
                os.write(2, f"{line}\n".encode())
            distributed.let_the_others_speak()  # theirs may be the stacks that tell
        finally:
            os._exit(TRY_AGAIN)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._done.set()
        self._thread.join()
