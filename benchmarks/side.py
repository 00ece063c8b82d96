"""A side of a comparison: a process that prepares a piece of work and does it on request.

    python -m benchmarks.side MODULE:FUNCTION '{"setting": value}'

Each side has a process of its own, so that its memory, its threads, its compiler and XLA's flags
are its own. `FUNCTION(**settings)` returns the work, a function that does it once. The protocol is
JSON, line by line: first what the side is (`Side.about`), then for every line of input the seconds
of one more repetition. Whatever else the process prints goes to standard error.
"""

import contextlib
import importlib
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

WARM_UPS = 2
"""Repetitions after the first, which compiles, that are not timed."""


class Done(NamedTuple):
    """What one repetition of the work gives."""

    check: Sequence[float]
    """What all sides must agree in: a loss, or tokens."""
    seconds: Mapping[str, float] = {}
    """Parts of the time, if the work measures any, beside `all` of it."""
    count: int = 1
    """How many times it did what is measured: the seconds are divided by it."""


Work = Callable[[], Done]


class Side:
    """A side that is ready: it has compiled, and waits for requests."""

    def __init__(self, name: str, build: str, settings: Mapping[str, Any], **environment: str):
        """Start it and wait until it has done its work once.

        Raises:
            SideError: it has ended, with the last line that it wrote.
        """
        self.name = name
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115  closed by `kill`
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.side", build, json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=os.environ | environment,
        )
        self.about = self._read()
        """`check` and `first_seconds` of the first repetition, `build_seconds`, `device`."""

    def repeat(self) -> dict[str, float]:
        """Seconds of one more repetition: `all`, and the parts."""
        self._write("repeat")
        return self._read()

    def end(self) -> dict[str, Any]:
        """End the process; what it knows at the end: `peak_bytes`."""
        self._write("end")
        last = self._read()
        self.kill()
        return last

    def kill(self) -> None:
        """End the process, whatever it does."""
        self._process.kill()
        self._process.communicate()
        self._log.close()

    def _write(self, line: str) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(f"{line}\n")
            self._process.stdin.flush()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        self._process.wait()
        self._log.seek(0)
        lines = [line.strip() for line in self._log if line.strip()]
        self.kill()
        raise SideError(lines[-1] if lines else f"exit status {self._process.returncode}")


class SideError(Exception):
    """A side has ended before its time."""


def serve(
    build: Callable[..., Work], settings: Mapping[str, Any], asked: IO[str], answers: IO[str]
):
    """Build the work, do it once, then again for every line of `asked`, until it is `end`."""
    before = _resident("VmRSS")

    def answer(values: Mapping[str, Any]) -> None:
        print(json.dumps(values), file=answers, flush=True)

    begun = time.perf_counter()
    work = build(**settings)
    built = time.perf_counter()
    first = work()
    compiled = time.perf_counter()
    for _ in range(WARM_UPS):
        work()
    _forget_peak()
    answer(
        {
            "check": [*first.check],
            "build_seconds": built - begun,
            "first_seconds": compiled - built,
            "device": device(),
        }
    )
    for line in asked:
        if line.strip() == "end":
            answer({"peak_bytes": peak_bytes(before)})
            return
        begun = time.perf_counter()
        done = work()
        seconds = {"all": time.perf_counter() - begun, **done.seconds}
        answer({name: value / done.count for name, value in seconds.items()})


def device() -> str:
    """What the work ran on: the kind of the GPU, or the CPU's name."""
    if (jax := sys.modules.get("jax")) and jax.devices()[0].platform != "cpu":
        return str(jax.devices()[0].device_kind)
    if (torch := sys.modules.get("torch")) and torch.cuda.is_initialized():
        return str(torch.cuda.get_device_name())
    with contextlib.suppress(OSError):
        if found := re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text()):
            return found[1]
    return "cpu"


def peak_bytes(before: int = 0) -> int:
    """The most memory held: of the GPU, else of the process less what it held `before`.

    On a GPU JAX's figure includes what it held while it compiled.
    """
    if (jax := sys.modules.get("jax")) and jax.devices()[0].platform != "cpu":
        return int((jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0))
    if (torch := sys.modules.get("torch")) and torch.cuda.is_initialized():
        return int(torch.cuda.max_memory_allocated())
    return _resident("VmHWM") - before


def _resident(which: str) -> int:
    """Resident bytes of the process, now (VmRSS) or at most (VmHWM)."""
    with contextlib.suppress(OSError):
        if found := re.search(rf"{which}:\s*(\d+) kB", Path("/proc/self/status").read_text()):
            return 1024 * int(found[1])
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _forget_peak() -> None:
    """Let Linux count the most resident memory from now on: compilers hold more than their work."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    if (torch := sys.modules.get("torch")) and torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()


def main() -> None:
    """Serve the side that the arguments name."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    build, settings = sys.argv[1:]
    module, _, function = build.partition(":")
    serve(
        getattr(importlib.import_module(module), function), json.loads(settings), sys.stdin, answers
    )


if __name__ == "__main__":
    main()
