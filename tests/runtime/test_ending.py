"""Signals end a command with one line and 128 + signal, whatever it is doing."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.run.tiny import flags, tiny_config

ENDS = pytest.mark.parametrize(
    ("number", "status", "line"),
    [("SIGTERM", 143, "p: terminated\n"), ("SIGINT", 130, "p: interrupted\n")],
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
def test_what_is_under_way_is_put_in_order_but_python_says_no_goodbye(number, status, line):
    program = (
        "import atexit, os, signal\n"
        "from jaxformer.cli.arguments import run_command\n"
        "atexit.register(os.abort)  # as XLA may when Python ends amid a compilation\n"
        "def work():\n"
        "    try:\n"
        f"        signal.raise_signal(signal.{number})\n"
        "    finally:\n"
        "        print('in order')\n"
        "run_command('p', work)"
    )
    assert python(program) == (status, "in order\n", line)


@ENDS
def test_a_signal_amid_an_import_ends_the_process_at_once(tmp_path, number, status, line):
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
        "from jaxformer.runtime import ending\n"
        "ending.TOGETHER = 0.1\n"
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


def test_who_is_not_to_hear_ctrl_c_does_not():
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
def test_a_signal_amid_garbage_collection_is_not_lost(number, status, line):
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


def listens(pid: int) -> bool:
    """Whether a process catches SIGTERM: proc(5), SigCgt."""
    status = Path(f"/proc/{pid}/status").read_text()
    (caught,) = (line.split()[1] for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


@pytest.mark.parametrize("count", [2, pytest.param(40, marks=pytest.mark.slow)])
def test_a_run_that_has_hardly_begun_ends_so_too(tmp_path, count):
    """Amid imports, the first compilation, the first files or the first steps; the next goes on."""
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
            said, _ = process.communicate(timeout=600)
            seconds.append(time.monotonic() - began)
        assert process.returncode == status, said
        assert "Traceback" not in said
        told = f"{number.name}: saved step", "gpt_char: interrupted\n", "gpt_char: terminated\n"
        assert sum(map(said.count, told)) == 1, said
    print(f"{count} ends took {min(seconds):.2f} to {max(seconds):.2f} seconds")
