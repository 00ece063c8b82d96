"""Runs of the character-level recipe as a user starts them: in one process, or in several."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxformer.monitor.metrics import read_metrics
from tests.flags import QUICK_TO_COMPILE

TEXT = "".join(f"{i} bottles of beer on the wall, {i} bottles of beer.\n" for i in range(400))
SIZES = [
    *("--model.context-length", "16", "--model.width", "16", "--model.num-heads", "2"),
    *("--model.mlp-width", "32", "--model.num-layers", "1", "--model.dropout-rate", "0.2"),
    *("--batch-size", "8", "--eval-every", "4", "--seed", "3", "--optimizer.warmup-steps", "10"),
]

Process = subprocess.Popen[str]


def command(directory: Path, *words: str) -> list[str]:
    """Train in `directory / "run"` on a small text beside it."""
    text = directory / "text.txt"
    if not text.exists():
        text.write_text(TEXT, encoding="utf-8")
    run = ["--run-dir", str(directory / "run"), "--data.path", str(text)]
    return [
        *(sys.executable, "-W", "error", "-m", "jaxformer", "train", "gpt_char"),
        *(*run, *SIZES, *words),
    ]


def start(
    words: Sequence[str], devices: int = 8, environment: Mapping[str, str] | None = None
) -> Process:
    """A process with so many simulated devices.

    Of several, JAX lets the first alone fill the cache of compiled functions. Without it all
    compile alike, and none is 30 seconds late for the first collective: no longer does a CPU wait.
    """
    cached = not any(word.startswith("--distributed.") for word in words)
    flags = f"--xla_force_host_platform_device_count={devices} {QUICK_TO_COMPILE}"
    return subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={
            **os.environ,
            "XLA_FLAGS": flags,
            "JAX_ENABLE_COMPILATION_CACHE": str(cached).lower(),
            **(environment or {}),
        },
    )


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def meeting(process: int, port: int, processes: int = 2) -> list[str]:
    """The flags by which a process finds the others."""
    return [
        *("--distributed.coordinator", f"127.0.0.1:{port}", "--distributed.timeout", "600"),
        *("--distributed.processes", str(processes), "--distributed.process", str(process)),
    ]


def start_two(directory: Path, *words: str) -> list[Process]:
    """Two processes of four devices each."""
    port = free_port()
    return [start([*command(directory, *words), *meeting(i, port)], devices=4) for i in (0, 1)]


def ends(processes: Iterable[Process], seconds: float = 600) -> list[tuple[int, str, str]]:
    """Exit status, output and complaint of each, in order; one that does not end is killed."""
    processes, found = list(processes), []
    try:
        for process in processes:
            output, complaint = process.communicate(timeout=seconds)
            found.append((process.returncode, output, complaint))
    finally:
        for process in processes:
            process.kill()
    return found


def rows(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of metrics so far."""
    metrics = run_dir / "metrics.jsonl"
    return read_metrics(metrics) if metrics.exists() else []


def wait_for_rows(process: Process, run_dir: Path, number: int) -> None:
    """Return when the run has written so many lines of metrics."""
    while len(rows(run_dir)) < number:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


def child_of(process: Process, earlier: int | None = None) -> int:
    """The process id of the run under a supervisor, once it is not `earlier` any more."""
    listing = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    for _ in range(2400):
        children = [int(number) for number in listing.read_text().split()]
        if children and children[-1] != earlier:
            return children[-1]
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    raise TimeoutError(listing)
