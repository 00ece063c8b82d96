"""Commands and training processes that begin at once: forked from a server that imported it all.

A process begun so is a process of its own with a jax of its own, like one begun by a shell: the
server imports jax but never starts it.
"""

import contextlib
import ctypes
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.context import ForkServerProcess
from multiprocessing.process import BaseProcess
from pathlib import Path

import jax

from jaxformer import checkpoint
from tests.flags import QUICK_TO_COMPILE

FORKS = multiprocessing.get_context("forkserver")
COMMANDS = ("attention", "evaluate", "plot", "sample", "train", "translate")
FORKS.set_forkserver_preload(
    [
        *("tests.run.forked", "jaxformer.run.loop", "jaxformer.run.summary"),
        *("jaxformer.monitor.plots", "train.gpt_char"),
        *(f"jaxformer.cli.{name}" for name in COMMANDS),
    ]
)


PATIENCE = 600.0
"""Seconds after which a process that shows nothing is taken to hang."""


def start(words: list[str], log: Path, **environment: str) -> ForkServerProcess:
    """`jaxformer train gpt_char WORDS` on one device, all it prints appended to `log`."""
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


def run(
    module: str, words: Sequence[str], directory: Path | None = None, said: str = ""
) -> subprocess.CompletedProcess[str]:
    """`echo SAID | python -m MODULE WORDS` on one device, to its end."""
    with tempfile.TemporaryDirectory() as place:
        streams = [Path(place) / name for name in ("input", "output", "errors")]
        for stream in streams:
            stream.write_text(said if stream.name == "input" else "")
        process = FORKS.Process(
            target=_run, args=(module, words, streams, directory or Path.cwd(), dict(os.environ))
        )
        process.start()
        process.join(PATIENCE)
        if process.exitcode is None:
            process.kill()
        output, errors = (stream.read_text() for stream in streams[1:])
        assert process.exitcode is not None, f"hangs: {output}{errors}"
        return subprocess.CompletedProcess([module, *words], process.exitcode, output, errors)


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


def _run(
    module: str, words: list[str], streams: list[Path], directory: Path, environment: dict[str, str]
) -> None:
    for number, stream in enumerate(streams):
        os.dup2(os.open(stream, os.O_RDWR | os.O_APPEND), number)
    sys.stdin = os.fdopen(0)  # multiprocessing has given it another file
    _settle(environment)
    os.chdir(directory)
    sys.argv = [module, *words]
    sys.modules.pop(module, None)  # else runpy warns of what the server has imported
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _settle(environment: dict[str, str]) -> None:
    """Settings that the server has read at its start, or that a process of its own has."""
    os.environ.update(environment, XLA_FLAGS=QUICK_TO_COMPILE)
    unoptimized = "JAX_DISABLE_MOST_OPTIMIZATIONS"
    jax.config.update(unoptimized.lower(), os.environ[unoptimized] == "1")


def _main(words: list[str], log: Path, environment: dict[str, str]) -> None:
    with log.open("a") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    _settle(environment)
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
    run_command("jaxformer train gpt_char", lambda: gpt_char.main(words))


def _obey_permissions() -> None:
    """Root may write anywhere by its capabilities (capabilities(7)): give them all up."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3, this thread
    if libc.capset(header, (ctypes.c_uint32 * 6)()) != 0:
        raise OSError(ctypes.get_errno(), "capset")
