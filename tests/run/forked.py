"""Training processes that begin within a second: forked from a server that has imported it all.

A process begun so is a process of its own with a jax of its own, like one begun by a shell: the
server imports jax but never starts it.
"""

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerProcess
from multiprocessing.process import BaseProcess
from pathlib import Path

from jaxformer import checkpoint

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.run.forked", "jaxformer.run.loop", "train.gpt_char"])


PATIENCE = 600.0
"""Seconds after which a process that shows nothing is taken to hang."""


def start(words: list[str], log: Path, **environment: str) -> ForkServerProcess:
    """`python -m train.gpt_char WORDS` on one device, all it prints appended to `log`."""
    process = FORKS.Process(target=_main, args=(words, log, environment))
    process.start()
    return process


@contextlib.contextmanager
def training(words: list[str], log: Path, **environment: str) -> Iterator[ForkServerProcess]:
    """The same for the length of a block, killed at its end if it still runs."""
    process = start(words, log, **environment)
    try:
        yield process
    finally:
        if process.is_alive():
            process.kill()
        process.join()
        process.close()


def newest(run_dir: Path) -> int:
    """The last step that is listed, 0 without any."""
    return max(checkpoint.steps(run_dir / "checkpoints"), default=0)


def wait_for(condition: Callable[[], bool], process: BaseProcess, log: Path) -> None:
    """Return when the condition holds.

    Raises:
        AssertionError: the process ended before, or shows nothing for long.
    """
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert process.is_alive(), log.read_text()
        assert time.monotonic() < deadline, f"hangs: {log.read_text()}"
        time.sleep(0.001)


def _main(words: list[str], log: Path, environment: dict[str, str]) -> None:
    with log.open("a") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    os.environ.update(environment, XLA_FLAGS="")
    if sys.platform == "linux":  # nobody trains on when the tests are killed: prctl(2), DEATHSIG
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    from jaxformer.cli.arguments import run_command
    from train import gpt_char

    if os.environ.get("DISK"):  # bytes that a file may have
        import resource

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        limit = int(os.environ["DISK"])
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    if os.environ.get("POWERLESS"):
        _obey_permissions()
    run_command(gpt_char.PROG, lambda: gpt_char.main(words))


def _obey_permissions() -> None:
    """Root may write anywhere by its capabilities (capabilities(7)): give them all up."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3, this thread
    if libc.capset(header, (ctypes.c_uint32 * 6)()) != 0:
        raise OSError(ctypes.get_errno(), "capset")
