"""A thread that ends the process when the run makes no progress.

Collectives wait for ever for a process that is alive but stuck. The
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
from typing import Self, TypeVar

from jaxformer.errors import TRY_AGAIN
from jaxformer.runtime import distributed

BatchT = TypeVar("BatchT")

COMPILING = 900.0
"""Additional seconds for the first step, the first evaluation, ..., which are compiled."""


class Watchdog:
    """While the block lasts, the next `expect` must follow each one within the limit."""

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
        """Restart the clock, and note what the run does next."""
        with self._lock:
            self._what = f"{kind} {step}"
            self._left = self._seconds + (0.0 if kind in self._met else COMPILING)
            self._met.add(kind)

    def over(self, batches: Iterable[BatchT], kind: str, step: int) -> Iterator[BatchT]:
        """The batches; each restarts the clock."""
        for batch in batches:
            self.expect(kind, step)
            yield batch

    def _watch(self) -> None:
        period = min(1.0, self._seconds / 4)
        then = time.monotonic()
        while not self._done.wait(period):
            now = time.monotonic()
            with self._lock:
                # The time for which the process is stopped (Ctrl-Z) does not count.
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
            distributed.wait_for_peers()  # the fault may show in their stacks
        finally:
            os._exit(TRY_AGAIN)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
