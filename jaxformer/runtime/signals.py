"""SIGINT and SIGTERM turned into a request: finish the step, save, then end with 128 + signal.

Several processes have to save the same step. There JAX's runtime listens for SIGTERM itself, tells
all processes, and says at which step they stop; a handler of Python's would shut it out.
"""

import os
import signal
import time
from collections.abc import Iterable, Iterator
from types import FrameType, TracebackType
from typing import Any, Self, TypeVar

from jax.experimental.multihost_utils import reached_preemption_sync_point

from jaxformer.runtime.ending import TOGETHER, listen

BatchT = TypeVar("BatchT")


class AskedToEndError(Exception):
    """What was under way is broken off, for the run is to end."""


class PreemptionGuard:
    """While the block lasts, a first signal is noted; a later one ends the process at once."""

    handled: tuple[signal.Signals, ...] = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._since = 0.0
        self._before: dict[signal.Signals, Any] = {}

    @property
    def exit_status(self) -> int:
        """0 without a signal, 130 after SIGINT, 143 after SIGTERM."""
        return 0 if self.signal is None else 128 + self.signal

    def reached(self) -> bool:
        """Whether the run is to end here; all processes have to ask at the same moments."""
        return self.signal is not None

    def over(self, batches: Iterable[BatchT]) -> Iterator[BatchT]:
        """The batches, each of them a moment at which the run may end.

        Raises:
            AskedToEndError: it is to end.
        """
        for batch in batches:
            if self.reached():
                raise AskedToEndError
            yield batch

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal, self._since = signal.Signals(number), time.monotonic()
        elif time.monotonic() - self._since > TOGETHER:
            # Saving is under way in other threads, whose complaints would bury the message.
            try:
                os.write(2, b"stopped before the step was saved\n")
            finally:
                os._exit(128 + number)

    def __enter__(self) -> Self:
        for number in self.handled:
            self._before[number] = listen(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)


class MultiHostPreemptionGuard(PreemptionGuard):
    """The same for one of several processes: whichever is asked to end, all end with one step."""

    handled = (signal.SIGINT,)

    def __init__(self) -> None:
        super().__init__()
        self._moments = 0
        self._reached = False

    def reached(self) -> bool:
        """Whether all processes are to end here."""
        if not self._reached:
            self._moments += 1
            self._reached = reached_preemption_sync_point(self._moments)
        if self._reached and self.signal is None:
            super()._note(signal.SIGTERM, None)
        return self._reached

    def _note(self, number: int, frame: FrameType | None) -> None:
        super()._note(number, frame)
        os.kill(os.getpid(), signal.SIGTERM)  # which JAX passes on to the others
