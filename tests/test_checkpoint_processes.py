"""Checkpoints of processes that are killed, run out of room, end at once, or are two."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jaxformer.checkpoint import CheckpointWriter, restore, steps
from tests.states import abstract, assert_same_bits, small_state

LOOP = """
import sys
from pathlib import Path
import jax.numpy as jnp
from tests import states
from jaxformer.checkpoint import CheckpointWriter, steps
directory = Path(sys.argv[1])
with CheckpointWriter(directory, keep=2) as writer:
    for step in range(max(steps(directory), default=0) + 1, 10**9):
        writer.save(step, states.small_state(step), {"position": step})
        print(step, flush=True)
"""


def python(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
    )


def kill_and_check(directory: Path, kills: int) -> None:
    rng = random.Random(0)
    reached = 0
    for _ in range(kills):
        with python(LOOP, directory) as process:
            assert process.stdout is not None
            process.stdout.readline()  # saving has begun
            time.sleep(rng.uniform(0, 0.3))
            process.send_signal(signal.SIGKILL)
        listed = steps(directory)
        for step in listed:
            restored, found = restore(directory, abstract(small_state(0)), step)
            assert_same_bits(restored, small_state(step))
            assert found.metadata == {"position": step}
        assert max(listed, default=0) >= reached
        reached = max(listed, default=0)
    assert reached > kills
    CheckpointWriter(directory, keep=1).close()
    assert not list(directory.glob(".*"))


def test_killed_at_any_moment_every_listed_step_is_whole(tmp_path: Path) -> None:
    kill_and_check(tmp_path, 5)


@pytest.mark.slow
def test_killed_thirty_times_every_listed_step_is_whole(tmp_path: Path) -> None:
    kill_and_check(tmp_path, 30)


def test_quiet_and_complete_when_the_process_ends_right_after_close(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from tests import states
states.save_all(Path(sys.argv[1]), [1, 2, 3], keep=1)
"""
    with python(code, tmp_path) as process:
        assert process.communicate() == ("", "")
    assert process.returncode == 0
    assert_same_bits(restore(tmp_path, abstract(small_state(0)))[0], small_state(3))


def test_a_file_that_cannot_grow_fails_in_one_line_without_a_traceback(tmp_path: Path) -> None:
    code = """
import resource, signal, sys
from pathlib import Path
import jax.numpy as jnp
from tests import states
from jaxformer.errors import UserError
directory = Path(sys.argv[1])
states.save_all(directory, [1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    with states.CheckpointWriter(directory, keep=1) as writer:
        writer.save(2, {"x": states.bits(0, (400, 400), "float32")}, {})
except UserError as error:
    print(error)
"""
    with python(code, tmp_path) as process:
        out, err = process.communicate()
    assert (err, process.returncode) == ("", 0)
    assert out.startswith("saving checkpoint 2 in ")
    assert "File too large" in out
    assert out.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["1"]
    assert_same_bits(restore(tmp_path, abstract(small_state(0)))[0], small_state(1))
