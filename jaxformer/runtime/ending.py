"""How SIGINT and SIGTERM end a command: one line, 128 + signal, and nothing left half done.

Once a training loop begins, it listens for them itself (`jaxformer.runtime.signals`). jax is not
imported here, so that a command listens before anything heavy is under way.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, NoReturn, Self

TOGETHER = 2.0
"""Seconds within which signals are one request: whoever ends a group of processes signals them all,
and a supervisor among them passes its own on; a hand on Ctrl-C presses twice."""


class Terminated(BaseException):
    """SIGTERM, as KeyboardInterrupt is SIGINT."""


class SignalGuard:
    """While the block lasts, a first signal raises its exception; a later one ends the process."""

    def __init__(self, prog: str) -> None:
        self._prog = prog
        self._since: float | None = None

    def __enter__(self) -> Self:
        self._hook = sys.unraisablehook
        sys.unraisablehook = self._send_again
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                listen(number, self._raise)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        sys.unraisablehook = self._hook

    def _raise(self, number: int, frame: FrameType | None) -> None:
        if _is_importing(frame):
            with contextlib.suppress(OSError):
                os.write(2, f"{exit_message(self._prog, number)}\n".encode())
            leave(128 + number)
        if self._since is None:
            self._since = time.monotonic()
            raise KeyboardInterrupt if number == signal.SIGINT else Terminated
        if time.monotonic() - self._since > TOGETHER:
            os._exit(128 + number)

    def _send_again(self, lost: "sys.UnraisableHookArgs") -> None:
        """Send a signal again whose exception was raised where Python ignores exceptions.

        Between two instructions of the main thread may be one of a callback of the garbage
        collector, such as jax's; what a handler raises there is reported and forgotten.
        """
        numbers = {Terminated: signal.SIGTERM, KeyboardInterrupt: signal.SIGINT}
        if lost.exc_type not in numbers:
            self._hook(lost)
            return
        self._since = None
        main = threading.main_thread().ident  # another thread would not be woken for it
        again = threading.Timer(0.05, signal.pthread_kill, (main, numbers[lost.exc_type]))
        again.daemon = True
        again.start()


def listen(number: signal.Signals, handler: Callable[[int, FrameType | None], None]) -> Any:
    """Let a signal come to the handler, unless who started the process wants it ignored.

    So a shell keeps Ctrl-C from what it runs in the background. Returns the handler before.
    """
    before = signal.getsignal(number)
    if before is not signal.SIG_IGN:
        signal.signal(number, handler)
    return before


def _is_importing(frame: FrameType | None) -> bool:
    """Whether a library is being imported, whose compiled half may crash at an exception.

    Nothing is under way then that would have to be put in order.
    """
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


def exit_message(prog: str, number: int) -> str:
    """The line that says by which signal a command was ended."""
    return f"{prog}: {'interrupted' if number == signal.SIGINT else 'terminated'}"


def leave(status: int) -> NoReturn:
    """End the process without Python's goodbye.

    XLA's threads may be amid a compilation that a signal broke off, and crash while Python takes
    everything down around them.
    """
    try:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
    finally:
        os._exit(status)
