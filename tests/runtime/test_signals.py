"""Signals end a command with one line and 128 + signal; a training loop saves its step first."""

import os
import pty
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from jaxformer.runtime import signals
from jaxformer.runtime.signals import PreemptionGuard
from tests.run.tiny import flags, tiny_config

ENDS = pytest.mark.parametrize(
    ("number", "status", "line"),
    [
        ("SIGTERM", 143, "p: terminated\n"),
        ("SIGINT", 130, "p: interrupted\n"),
        ("SIGHUP", 129, "p: ended by SIGHUP\n"),
    ],
)


def python(program: str, *wrapper: str, **environment: str) -> tuple[int, str, str]:
    """Status, output and errors of a program."""
    ran = subprocess.run(
        [*wrapper, sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        timeout=600,
    )
    return ran.returncode, ran.stdout, ran.stderr


@ENDS
def test_a_signal_is_one_line_and_a_status(number, status, line):
    program = (
        "import signal\n"
        "from jaxformer.cli.arguments import run_command\n"
        "def work():\n"
        "    print('so far')\n"
        f"    signal.raise_signal(signal.{number})\n"
        "run_command('p', work)"
    )
    assert python(program) == (status, "so far\n", line)


@ENDS
def test_cleanup_runs_but_not_the_shutdown_of_python(number, status, line):
    program = (
        "import atexit, os, signal\n"
        "from jaxformer.cli.arguments import run_command\n"
        "atexit.register(os.abort)  # as XLA may when Python ends during a compilation\n"
        "def work():\n"
        "    try:\n"
        f"        signal.raise_signal(signal.{number})\n"
        "    finally:\n"
        "        print('in order')\n"
        "run_command('p', work)"
    )
    assert python(program) == (status, "in order\n", line)


@ENDS
def test_a_signal_during_an_import_ends_the_process_at_once(tmp_path, number, status, line):
    """Compiled modules crash at an exception, or make another of it."""
    (tmp_path / "compiled.py").write_text(
        f"""import signal
try:
    signal.raise_signal(signal.{number})
except BaseException:
    raise ImportError("initialization failed")
"""
    )
    program = (
        "from jaxformer.cli.arguments import run_command\n"
        "def work():\n"
        "    import compiled\n"
        "run_command('p', work)"
    )
    path = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    assert python(program, PYTHONPATH=path) == (status, "", line)


@ENDS
def test_a_later_signal_does_not_wait(number, status, line):
    program = (
        "import signal, time\n"
        "from jaxformer.cli.arguments import run_command\n"
        "from jaxformer.runtime import signals\n"
        "signals.TOGETHER = 0.1\n"
        "def work():\n"
        "    try:\n"
        f"        signal.raise_signal(signal.{number})\n"
        "    finally:\n"
        "        time.sleep(0.2)\n"
        f"        signal.raise_signal(signal.{number})\n"
        "        time.sleep(60)\n"
        "run_command('p', work)"
    )
    assert python(program) == (status, "", "")


@ENDS
def test_a_second_signal_on_the_way_out_changes_nothing(number, status, line):
    program = (
        "import signal, sys\n"
        "from jaxformer.cli.arguments import run_command\n"
        "write = sys.stderr.write\n"
        "def interrupted_write(text):\n"
        f"    signal.raise_signal(signal.{number})\n"
        "    return write(text)\n"
        "sys.stderr.write = interrupted_write\n"
        f"run_command('p', lambda: signal.raise_signal(signal.{number}))"
    )
    assert python(program) == (status, "", line)


def test_a_process_that_ignores_ctrl_c_keeps_ignoring_it():
    """As a shell's background: neither a command nor a training loop in it."""
    program = (
        "import signal\n"
        "from jaxformer.cli.arguments import run_command\n"
        "from jaxformer.runtime.signals import PreemptionGuard\n"
        "def work():\n"
        "    signal.raise_signal(signal.SIGINT)\n"
        "    with PreemptionGuard() as interrupt:\n"
        "        signal.raise_signal(signal.SIGINT)\n"
        "        return interrupt.exit_status\n"
        "run_command('p', work)"
    )
    assert python(program, "sh", "-c", "trap '' INT; exec \"$@\"", "sh") == (0, "", "")


@ENDS
def test_a_signal_during_garbage_collection_is_not_lost(number, status, line):
    program = (
        "import gc, os, signal, time\n"
        "from jaxformer.cli.arguments import run_command\n"
        "gc.disable()  # but for the one below\n"
        "times = []\n"
        "def callback(phase, info):\n"
        "    if not times:\n"
        "        times.append(phase)\n"
        f"        os.kill(os.getpid(), signal.{number})\n"
        "gc.callbacks.append(callback)\n"
        "def work():\n"
        "    gc.collect()\n"
        "    time.sleep(60)\n"
        "run_command('p', work)"
    )
    assert python(program) == (status, "", line)


TWO_SIGNALS = """
import signal, time
from jaxformer.runtime import signals
signals.TOGETHER = 0.1
with signals.PreemptionGuard() as interrupt:
    signal.raise_signal(signal.SIGTERM)
    time.sleep(0.2)
    signal.raise_signal(signal.SIGINT)
"""


@pytest.mark.parametrize("second", PreemptionGuard.handled)
def test_signals_that_come_together_are_one(
    second: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "_exit", lambda status: pytest.fail(f"ended with {status}"))
    monkeypatch.setattr(signals, "TOGETHER", 600.0)
    with PreemptionGuard() as interrupt:
        assert not interrupt.reached()
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(second)
        assert interrupt.reached()
    assert interrupt.exit_status == 143


OF_SYSTEMS = ("INT", "TERM", "HUP", "QUIT", "USR1", "USR2", "XCPU")


@pytest.mark.parametrize("number", [signal.Signals[f"SIG{name}"] for name in OF_SYSTEMS])
def test_every_signal_that_ends_is_noted(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with PreemptionGuard() as interrupt:
        signal.raise_signal(number)
    assert (interrupt.signal, interrupt.exit_status) == (number, 128 + number)
    assert signal.getsignal(number) is before


def test_a_limit_of_cpu_time_that_the_kernel_repeats_is_one_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "_exit", lambda status: pytest.fail(f"ended with {status}"))
    monkeypatch.setattr(signals, "TOGETHER", -1.0)
    with PreemptionGuard() as interrupt:
        signal.raise_signal(signal.SIGXCPU)
        signal.raise_signal(signal.SIGXCPU)
    assert interrupt.exit_status == 128 + signal.SIGXCPU


def test_another_thread_than_the_main_one_leaves_signals_alone() -> None:
    def guarded() -> int:
        with signals.SignalGuard("p"), PreemptionGuard() as interrupt:
            assert signal.getsignal(signal.SIGTERM) is before
            return interrupt.exit_status

    before = signal.getsignal(signal.SIGTERM)
    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(guarded).result() == 0
    assert signal.getsignal(signal.SIGTERM) is before


ON_A_TERMINAL = """
import os, time
from jaxformer.cli.arguments import run_command
from jaxformer.monitor.progress import Progress
from jaxformer.runtime.signals import PreemptionGuard
def main():
    os.open(os.ttyname(0), os.O_RDWR)  # it becomes the terminal of this session
    with PreemptionGuard() as interrupt, Progress(9) as progress:
        progress.print("begun")
        while interrupt.signal is None:
            time.sleep(0.01)
        progress.print("saved")
    print("done")
    return interrupt.exit_status
run_command("p", main)
"""


@pytest.mark.parametrize("kind", ["dumb", "xterm"])
def test_a_closed_terminal_ends_a_run_in_order(kind: str) -> None:
    terminal, end = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", ON_A_TERMINAL],
        stdin=end,
        stdout=end,
        stderr=end,
        start_new_session=True,
        env=os.environ | {"TERM": kind},
    ) as process:
        os.close(end)
        shown = b""
        while b"begun" not in shown:
            shown += os.read(terminal, 4096)
        os.close(terminal)
        assert process.wait(600) == 129


@pytest.mark.parametrize("full", [False, True])
def test_a_later_signal_ends_the_process_even_if_it_cannot_say_so(full: bool) -> None:
    with open("/dev/full", "w") as nowhere:
        errors = nowhere if full else subprocess.PIPE
        done = subprocess.run([sys.executable, "-c", TWO_SIGNALS], stderr=errors, text=True)
    assert done.returncode == 130
    if not full:
        assert done.stderr == "stopped before the step was saved\n"


def listens(pid: int) -> bool:
    """Whether a process catches SIGTERM: proc(5), SigCgt."""
    status = Path(f"/proc/{pid}/status").read_text()
    (caught,) = (line.split()[1] for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


@pytest.mark.parametrize("count", [2, pytest.param(40, marks=pytest.mark.slow)])
def test_a_run_that_has_just_begun_ends_so_too(tmp_path, count):
    """During imports, the first compilation, files or steps; the next start resumes."""
    config, run_dir = tiny_config(tmp_path, steps=100_000), tmp_path / "run"
    command = [sys.executable, "-m", "train.gpt_char", *flags(config, run_dir)]
    environment = os.environ | {"JAXFORMER_CACHE": str(tmp_path / "cache"), "XLA_FLAGS": ""}
    rng, seconds = random.Random(5), []
    for index in range(count):
        begun = (run_dir / "config.json").is_file()
        number, status = ((signal.SIGTERM, 143), (signal.SIGINT, 130))[index % 2]
        with subprocess.Popen(
            [*command, *(["--resume"] if begun else [])],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            while not listens(process.pid):
                assert process.poll() is None
                time.sleep(0.001)
            time.sleep(rng.uniform(0, 2))
            began = time.monotonic()
            process.send_signal(number)
            output, _ = process.communicate(timeout=600)
            seconds.append(time.monotonic() - began)
        assert process.returncode == status, output
        assert "Traceback" not in output
        messages = f"{number.name}: saved step", "gpt_char: interrupted\n", "gpt_char: terminated\n"
        assert sum(map(output.count, messages)) == 1, output
    print(f"{count} ends took {min(seconds):.2f} to {max(seconds):.2f} seconds")
