"""SIGINT and SIGTERM turned into a request: finish the step, save, then end with 128 + signal."""

import os
import signal
from types import FrameType, TracebackType
from typing import Any, Self


class Interrupt:
    """While the block lasts, a first signal is noted; a second one ends the process at once."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    @property
    def exit_status(self) -> int:
        """0 without a signal, 130 after SIGINT, 143 after SIGTERM."""
        return 0 if self.signal is None else 128 + self.signal

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            # Saving is under way in other threads, whose complaints would bury the message.
            os.write(2, b"stopped before the step was saved\n")
            os._exit(128 + number)
        self.signal = signal.Signals(number)

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
