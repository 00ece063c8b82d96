"""Checkpoints of processes that are killed, run out of room, end at once, or are two."""

import random
import signal
import socket
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
from jaxformer.checkpoint import CheckpointWriter, steps
from tests import states
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
    """Every second kill may fall into the first save, the others come after three more steps."""
    rng = random.Random(0)
    reached = 0
    for number in range(kills):
        with python(LOOP, directory) as process:
            assert process.stdout is not None
            process.stdout.readline()  # saving has begun
            while number % 2 == 0 and max(steps(directory), default=0) < reached + 3:
                assert process.poll() is None, process.communicate()
                time.sleep(0.001)
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
from jaxformer.errors import UserError
from tests import states
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


def test_two_processes_save_and_restore_one_sharded_state(tmp_path: Path) -> None:
    code = """
import os, sys
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
from pathlib import Path
import jax, numpy as np
from jax.experimental.multihost_utils import sync_global_devices
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from jaxformer.checkpoint import CheckpointWriter, restore
directory, port, process = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
jax.distributed.initialize(
    f"127.0.0.1:{port}", 2, process, cluster_detection_method="deactivate",
    coordinator_bind_address=f"127.0.0.1:{port}",
)
mesh = jax.make_mesh((2, 4), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
def value(step):
    return np.arange(128, dtype=np.float32).reshape(16, 8) + step
def place(step, spec):
    return jax.make_array_from_callback((16, 8), NamedSharding(mesh, spec), value(step).__getitem__)
with CheckpointWriter(directory, keep=2) as writer:
    for step in (1, 2, 3):
        x = place(step, P(("data", "fsdp")))
        writer.save(step, {"x": x, "replicated": place(step, P())}, {"position": step})
sync_global_devices("saved")
for step in (2, 3):
    target = jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, P("fsdp", "data")))
    state, found = restore(directory, {"x": target, "replicated": target}, step)
    for leaf in state.values():
        assert leaf.sharding == target.sharding
        for shard in leaf.addressable_shards:
            assert np.array_equal(shard.data, value(step)[shard.index])
print(found.metadata)
"""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with python(code, tmp_path, port, 0) as first, python(code, tmp_path, port, 1) as second:
        for process in (first, second):
            out, err = process.communicate()
            assert (out.splitlines()[-1:], process.returncode) == (["{'position': 3}"], 0), err
    assert steps(tmp_path) == [2, 3]
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["2", "3"]
