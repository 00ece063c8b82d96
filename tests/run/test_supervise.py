"""`--restarts`: a run that crashes goes on by itself; one that was ended, or cannot run, does not."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from jaxformer import checkpoint
from jaxformer.config import RunOptions
from jaxformer.run.config_io import load_config
from jaxformer.run.kinds import make_task
from jaxformer.run.program import build
from jaxformer.run.supervise import supervise
from jaxformer.sharding.mesh import make_mesh
from tests.processes import Process, command, ends, rows, start

ONE_SAVE_A_STEP = ("--checkpoint.every", "1", "--eval-every", "1000")


def final_hash(run_dir: Path) -> str:
    config = load_config(run_dir / "config.json")
    mesh = make_mesh(config.mesh)
    program = build(make_task(config, mesh).method, mesh)
    return checkpoint.state_hash(checkpoint.restore(run_dir / "checkpoints", program.state)[0])


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


def kill_while_it_runs(directory: Path, steps: int, kills: int) -> None:
    whole, killed = directory / "whole", directory / "killed"
    for place in (whole, killed):
        place.mkdir()
    words = ("--steps", str(steps), *ONE_SAVE_A_STEP)
    ((status, _, complaint),) = ends([start(command(whole, *words))])
    assert status == 0, complaint
    text = ("--data.path", str(whole / "text.txt"))  # the path is part of the configuration
    supervisor = start([*command(killed, *words), *text, "--restarts", str(kills)])
    child = None
    for kill in range(kills):
        child = child_of(supervisor, child)
        while len(rows(killed / "run")) < (kill + 1) * steps // (kills + 1):
            assert supervisor.poll() is None, supervisor.communicate()
            time.sleep(0.02)
        os.kill(child, signal.SIGKILL)
    ((status, output, complaint),) = ends([supervisor])
    assert status == 0, complaint
    assert complaint.splitlines() == [
        f"train.gpt_char: the run ended with status 137; restart {kill + 1} of {kills}"
        for kill in range(kills)
    ]
    assert output.count("resumed from step") == kills
    assert checkpoint.steps(killed / "run" / "checkpoints")[-1] == steps
    assert [row["loss"] for row in rows(killed / "run")] == [
        row["loss"] for row in rows(whole / "run")
    ]
    assert final_hash(killed / "run") == final_hash(whole / "run")


def test_a_run_killed_twice_ends_as_one_that_never_was(tmp_path: Path) -> None:
    kill_while_it_runs(tmp_path, steps=24, kills=2)


@pytest.mark.slow
def test_a_run_killed_ten_times_ends_as_one_that_never_was(tmp_path: Path) -> None:
    kill_while_it_runs(tmp_path, steps=120, kills=10)


def test_a_signal_is_passed_on_once_and_nothing_is_started_again(tmp_path: Path) -> None:
    words = ("--steps", "100000", *ONE_SAVE_A_STEP, "--restarts", "3")
    supervisor = start(command(tmp_path, *words))
    while len(rows(tmp_path / "run")) < 3:
        assert supervisor.poll() is None, supervisor.communicate()
        time.sleep(0.05)
    supervisor.send_signal(signal.SIGINT)
    ((status, output, complaint),) = ends([supervisor])
    assert (status, complaint) == (130, "")
    step = checkpoint.steps(tmp_path / "run" / "checkpoints")[-1]
    assert f"SIGINT: saved step {step}" in output


CHILD = """
import os, sys
flags = sys.argv[1:]
with open("starts", "a") as file:
    print(*flags, file=file)
starts = len(open("starts").readlines())
if starts == 1:
    os.makedirs("run", exist_ok=True)
    open("run/config.json", "w").close()
sys.exit(int(flags[0].split(",")[starts - 1]))
"""


@pytest.mark.parametrize(
    ("statuses", "status", "starts"),
    [("75,1,0", 0, 3), ("1,1,1", 1, 3), ("2", 2, 1), ("1,2", 2, 2), ("143", 143, 1), ("0", 0, 1)],
)
def test_what_is_started_again_and_with_which_flags(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    statuses: str,
    status: int,
    starts: int,
) -> None:
    (tmp_path / "child.py").write_text(CHILD)
    monkeypatch.chdir(tmp_path)
    options = RunOptions(run_dir=tmp_path / "run", restarts=2)
    before = signal.getsignal(signal.SIGTERM)
    assert supervise("child", [statuses, "--restarts", "2"], options) == status
    assert signal.getsignal(signal.SIGTERM) is before
    first, *others = (tmp_path / "starts").read_text().splitlines()
    assert first == f"{statuses} --restarts 2 --restarts 0"
    assert others == [f"{statuses} --restarts 2 --resume --restarts 0"] * (starts - 1)
    assert capfd.readouterr().err.count("restart ") == starts - 1


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone tells a child of its parent's end")
def test_a_run_whose_supervisor_is_killed_saves_and_ends(tmp_path: Path) -> None:
    words = ("--steps", "100000", *ONE_SAVE_A_STEP, "--restarts", "3")
    supervisor = start(command(tmp_path, *words))
    while len(rows(tmp_path / "run")) < 3:
        assert supervisor.poll() is None, supervisor.communicate()
        time.sleep(0.05)
    supervisor.kill()
    ((_, output, _),) = ends([supervisor])  # its child holds the other end of the output
    step = checkpoint.steps(tmp_path / "run" / "checkpoints")[-1]
    assert f"SIGTERM: saved step {step}" in output
