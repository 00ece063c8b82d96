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
from collections.abc import Iterator
from multiprocessing.context import ForkServerProcess
from pathlib import Path

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.run.forked", "jaxformer.run.loop", "train.gpt_char"])


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
