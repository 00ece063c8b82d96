"""Signals that end: a command ends with one line and 128 + signal, a training loop saves first.

`SignalGuard` is around a whole command, `PreemptionGuard` around the training loop in it. This
module does not import jax at its top, so that a command listens from its start.
"""

import contextlib
import os
import signal
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import Any, NoReturn, Self, TypeVar

BatchT = TypeVar("BatchT")

ENDING = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,  # the terminal is closed
    signal.SIGQUIT,
    signal.SIGUSR1,  # a scheduler's warning of its time limit, as is SIGUSR2
    signal.SIGUSR2,
    signal.SIGXCPU,
)
"""Signals that ask a process to end, and end one that does not listen."""
TOGETHER = 2.0
"""Seconds within which signals are one request: a machine that shuts down signals a run and its
supervisor, which passes its own on; a user presses Ctrl-C twice."""


class Terminated(BaseException):
    """A signal other than SIGINT, which is KeyboardInterrupt."""

    def __init__(self, number: int):
        super().__init__(number)
        self.number = signal.Signals(number)


class SignalGuard:
    """While the block lasts, a first signal raises its exception; a later one ends the process."""

    def __init__(self, prog: str) -> None:
        self._prog = prog
        self._since: float | None = None

    def __enter__(self) -> Self:
        self._hook = sys.unraisablehook
        sys.unraisablehook = self._send_again
        for number in ENDING:
            listen(number, self._raise)
        return self

    def __exit__(self, *_: object) -> None:
        sys.unraisablehook = self._hook

    def _raise(self, number: int, frame: FrameType | None) -> None:
        leave_closed_terminal()
        if _is_importing(frame):
            with contextlib.suppress(OSError):
                os.write(2, f"{exit_message(self._prog, number)}\n".encode())
            exit_now(128 + number)
        if self._since is None:
            self._since = time.monotonic()
            raise KeyboardInterrupt if number == signal.SIGINT else Terminated(number)
        if _is_another(number, self._since):
            os._exit(128 + number)

    def _send_again(self, lost: "sys.UnraisableHookArgs") -> None:
        """Send a signal again whose exception was raised where Python ignores exceptions.

        The handler may run within a callback of the garbage collector, such as jax's; Python
        reports an exception from there and drops it.
        """
        if isinstance(lost.exc_value, Terminated):
            number = lost.exc_value.number
        elif lost.exc_type is KeyboardInterrupt:
            number = signal.SIGINT
        else:
            self._hook(lost)
            return
        self._since = None
        main = threading.main_thread().ident  # a signal to another thread would not wake this one
        again = threading.Timer(0.05, signal.pthread_kill, (main, number))
        again.daemon = True
        again.start()


class AskedToEndError(Exception):
    """The run was asked to end during an evaluation, which is dropped."""


class PreemptionGuard:
    """While the block lasts, a first signal is noted; a later one ends the process at once."""

    handled: tuple[signal.Signals, ...] = ENDING

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._since = 0.0
        self._before: dict[signal.Signals, Any] = {}

    @property
    def exit_status(self) -> int:
        """0 without a signal, else 128 + its number: 130 after SIGINT, 143 after SIGTERM."""
        return 0 if self.signal is None else 128 + self.signal

    def reached(self) -> bool:
        """Whether the run is to end here; all processes have to ask at the same points."""
        return self.signal is not None

    def over(self, batches: Iterable[BatchT]) -> Iterator[BatchT]:
        """The batches; before each the run may end.

        Raises:
            AskedToEndError: it is to end.
        """
        for batch in batches:
            if self.reached():
                raise AskedToEndError
            yield batch

    def _note(self, number: int, frame: FrameType | None) -> None:
        leave_closed_terminal()
        if self.signal is None:
            self.signal, self._since = signal.Signals(number), time.monotonic()
        elif _is_another(number, self._since):
            # Other threads are saving: their tracebacks would hide the message.
            try:
                os.write(2, b"stopped before the step was saved\n")
            finally:
                os._exit(128 + number)

    def __enter__(self) -> Self:
        for number in self.handled:
            self._before[number] = listen(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            unlisten(number, before)


class MultiHostPreemptionGuard(PreemptionGuard):
    """The same for one of several processes: if one is asked to end, all end after the same step.

    JAX's runtime listens for SIGTERM itself, informs all processes and agrees on the step; a Python
    handler would take the signal away from it.
    """

    handled = tuple(number for number in ENDING if number != signal.SIGTERM)

    def __init__(self) -> None:
        from jax.experimental.multihost_utils import reached_preemption_sync_point

        super().__init__()
        self._sync_point_reached = reached_preemption_sync_point
        self._points = 0
        self._reached = False

    def reached(self) -> bool:
        """Whether all processes are to end here."""
        if not self._reached:
            self._points += 1
            self._reached = self._sync_point_reached(self._points)
        if self._reached and self.signal is None:
            super()._note(signal.SIGTERM, None)
        return self._reached

    def _note(self, number: int, frame: FrameType | None) -> None:
        super()._note(number, frame)
        os.kill(os.getpid(), signal.SIGTERM)  # which JAX passes on to the others


def listen(number: signal.Signals, handler: Callable[[int, FrameType | None], None]) -> Any:
    """Handle a signal, unless the parent process has it ignored; returns the handler before.

    So a shell keeps Ctrl-C from what it runs in the background, and nohup a closed terminal. In
    another thread than the main one Python handles no signals: there nothing changes.
    """
    before = signal.getsignal(number)
    if before not in (signal.SIG_IGN, None) and _is_main_thread():
        signal.signal(number, handler)
    return before


def unlisten(number: signal.Signals, before: Any) -> None:
    """Restore the handler that `listen` returned."""
    if before is not None and _is_main_thread():
        signal.signal(number, before)


def leave_closed_terminal() -> None:
    """Let what is printed on a terminal that was closed go nowhere: writing to it is an error."""
    for stream in (1, 2):
        with contextlib.suppress(OSError):
            if stat.S_ISCHR(os.fstat(stream).st_mode) and not os.isatty(stream):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, stream)
                os.close(nowhere)


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _is_another(number: int, since: float) -> bool:
    """Whether a signal is a request of its own after an earlier one.

    SIGXCPU is not: the kernel repeats it each second.
    """
    return number != signal.SIGXCPU and time.monotonic() - since > TOGETHER


def _is_importing(frame: FrameType | None) -> bool:
    """Whether a library is being imported, whose compiled part may crash at an exception.

    No work has begun then that would need to be cleaned up.
    """
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


def exit_message(prog: str, number: int) -> str:
    """The line that says by which signal a command was ended."""
    known = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
    return f"{prog}: {known.get(signal.Signals(number), f'ended by {signal.Signals(number).name}')}"


def exit_now(status: int) -> NoReturn:
    """End the process without Python's shutdown.

    XLA's threads may be in the middle of a compilation, and crash while Python shuts down.
    """
    try:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
    finally:
        os._exit(status)
