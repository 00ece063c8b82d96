"""The watchdog: quiet while there is progress, and the end of a process that hangs."""

import subprocess
import sys
import time
from pathlib import Path

from jaxformer.errors import TRY_AGAIN
from jaxformer.runtime.watchdog import Watchdog
from tests.processes import command, ends, free_port, rows, start

HANGING = """
import dataclasses, sys, time
from jaxformer.cli.arguments import run_command
from jaxformer.run import loop
from train import gpt_char
build = loop.build
def build_hanging(*arguments):
    program = build(*arguments)
    def hang_in_the_third(state, batch):
        if int(state.step) == 2:
            time.sleep(1000)
        return program.train_step(state, batch)
    return dataclasses.replace(program, train_step=hang_in_the_third)
loop.build = build_hanging
run_command("jaxformer train gpt_char", lambda: gpt_char.main(sys.argv[1:]))
"""


def test_a_step_that_hangs_ends_the_run_with_the_stacks_of_all_threads(tmp_path: Path) -> None:
    words = command(tmp_path, "--steps", "9", "--watchdog", "20")
    flags = words[words.index("gpt_char") + 1 :]
    ((status, _, complaint),) = ends([start([sys.executable, "-c", HANGING, *flags])])
    assert status == TRY_AGAIN, complaint
    stacks = tmp_path / "run" / "stacks-0.txt"
    last = complaint.splitlines()[-1]
    assert last.startswith("error: no progress for 20 s (--watchdog) in step 3")
    assert str(stacks) in last
    for text in (complaint, stacks.read_text()):
        assert "hang_in_the_third" in text
        assert "_watch" in text
    assert [row["step"] for row in rows(tmp_path / "run")] == [1]


def test_every_sign_of_progress_restarts_the_clock(tmp_path: Path) -> None:
    script = """
import sys, time, types
from pathlib import Path
from jaxformer.runtime import watchdog
clock = types.SimpleNamespace(now=0.0, monotonic=lambda: clock.now)
watchdog.COMPILING, watchdog.time = 60.0, clock
dog = watchdog.Watchdog(3.0, Path(sys.argv[2]))
def wait(seconds):
    for _ in range(seconds):
        left = dog._left
        clock.now += 1.0
        while dog._left == left:  # until the watchdog has seen the clock
            time.sleep(0.01)
with dog:
    for step in range(3):
        dog.expect("step", step)
        wait(2)
    print(list(dog.over(sys.argv[1], "letter", 7)), flush=True)
    wait(4)
print("reached")
"""
    words = [sys.executable, "-c", script]
    pair = [start([*words, letters, str(tmp_path / letters)]) for letters in ("a", "ab")]
    (first, said, _), (second, said_twice, complaint) = ends(pair)
    assert (first, said) == (0, "['a']\nreached\n"), "the first of its kind may take longer"
    assert (second, said_twice) == (TRY_AGAIN, "['a', 'b']\n")
    assert "no progress for 3 s (--watchdog) in letter 7" in complaint


def test_a_run_that_hangs_ends_even_if_nothing_can_be_written(tmp_path: Path) -> None:
    script = """
import sys, time
from pathlib import Path
from jaxformer.runtime import watchdog
watchdog.COMPILING = 0.0
if sys.argv[1:]:
    sys.stderr.close()
with watchdog.Watchdog(0.2, Path("missing/stacks.txt")):
    time.sleep(60)
"""
    for close in ([], ["close"]):
        with open("/dev/full", "w") as full:
            words = [sys.executable, "-c", script, *close]
            done = subprocess.run(words, cwd=tmp_path, stderr=full, timeout=600)
        assert done.returncode == TRY_AGAIN


def test_of_two_processes_that_hang_each_writes_its_stacks(tmp_path: Path) -> None:
    script = """
import sys, time
from pathlib import Path
from jaxformer.config import DistributedConfig
from jaxformer.runtime import watchdog
from jaxformer.runtime import distributed
watchdog.COMPILING = 0.0
process, address = int(sys.argv[1]), sys.argv[2]
distributed.join(DistributedConfig(coordinator=address, processes=2, process=process))
distributed.assert_same_on_all_processes("ready")
with watchdog.Watchdog(1.0 + process / 2, Path(sys.argv[3])):  # process 0 ends the other
    time.sleep(60)
"""
    address = f"127.0.0.1:{free_port()}"
    stacks = [tmp_path / f"stacks-{process}.txt" for process in (0, 1)]
    words = [sys.executable, "-c", script]
    pair = [start([*words, str(i), address, str(stacks[i])], devices=1) for i in (0, 1)]
    for status, _, complaint in ends(pair):
        assert status == TRY_AGAIN, complaint
        assert "error: no progress for" in complaint
    for file in stacks:
        assert "_watch" in file.read_text()


def test_nothing_is_left_behind_by_a_run_that_makes_progress(tmp_path: Path) -> None:
    with Watchdog(0.4, tmp_path / "stacks.txt") as dog:
        dog.expect("step", 1)
        time.sleep(0.5)  # longer than the limit, but the first of its kind
    assert not list(tmp_path.iterdir())
