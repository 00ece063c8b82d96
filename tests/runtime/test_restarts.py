"""`--restarts`: a run that crashes is resumed; one that was ended or cannot run is not."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

from jaxformer import checkpoint
from jaxformer.config import RunOptions
from jaxformer.run.loop import train
from jaxformer.sharding.mesh import make_mesh
from jaxformer.tasks.config_io import load_config
from jaxformer.tasks.kinds import kind_of
from jaxformer.tasks.program import build
from tests.processes import child_of, command, ends, rows, start
from tests.run.forked import newest
from tests.run.tiny import one_device

ONE_SAVE_A_STEP = ("--checkpoint.every", "1", "--eval-every", "1000")


def final_hash(run_dir: Path) -> str:
    config = load_config(run_dir / "config.json")
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    program = build(kind_of(config).task(config, mesh).spec, mesh)
    items, _ = checkpoint.restore(run_dir / "checkpoints", checkpoint.split(program.state))
    return checkpoint.state_hash(items)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXFORMER_CACHE", str(tmp_path / "cache"))


def kill_while_it_runs(directory: Path, steps: int, kills: int) -> None:
    words = ("--steps", str(steps), *ONE_SAVE_A_STEP)
    run_dir = directory / "run"
    supervisor = start([*command(directory, *words), "--restarts", str(kills)], devices=1)
    child = None
    for _ in range(kills):
        child = child_of(supervisor, child)
        begun = newest(run_dir)
        while newest(run_dir) == begun:  # far from the end, however late it is seen here
            assert supervisor.poll() is None, supervisor.communicate()
            time.sleep(0.001)
        os.kill(child, signal.SIGKILL)
    ((status, output, complaint),) = ends([supervisor])
    assert status == 0, complaint
    assert complaint.splitlines() == [
        f"jaxformer train gpt_char: the run ended with status 137; restart {kill + 1} of {kills}"
        for kill in range(kills)
    ]
    assert output.count("resumed from step") == kills
    assert checkpoint.steps(run_dir / "checkpoints")[-1] == steps
    whole = directory / "whole"
    with pytest.MonkeyPatch.context() as patch:
        one_device(patch)
        train(load_config(run_dir / "config.json"), RunOptions(run_dir=whole))
    assert [row["loss"] for row in rows(run_dir)] == [row["loss"] for row in rows(whole)]
    assert final_hash(run_dir) == final_hash(whole)


def test_a_run_that_is_killed_goes_on_by_itself(tmp_path):
    kill_while_it_runs(tmp_path, steps=12, kills=1)


@pytest.mark.slow
def test_a_run_killed_ten_times_ends_as_one_that_never_was(tmp_path):
    kill_while_it_runs(tmp_path, steps=120, kills=10)


@pytest.mark.parametrize(
    ("number", "both"), [(signal.SIGINT, False), (signal.SIGTERM, True)], ids=["one", "both"]
)
def test_a_signal_saves_the_step_and_nothing_is_started_again(tmp_path, number, both):
    words = ("--steps", "100000", *ONE_SAVE_A_STEP, "--restarts", "3")
    supervisor = start(command(tmp_path, *words), devices=1)
    while len(rows(tmp_path / "run")) < 3:
        assert supervisor.poll() is None, supervisor.communicate()
        time.sleep(0.05)
    if both:  # as systemd does; the run gets it twice, as its supervisor passes the signal on
        os.kill(child_of(supervisor), number)
        time.sleep(0.05)
    supervisor.send_signal(number)
    ((status, output, complaint),) = ends([supervisor])
    assert (status, complaint) == (128 + number, "")
    step = checkpoint.steps(tmp_path / "run" / "checkpoints")[-1]
    assert f"{number.name}: saved step {step}" in output
    assert rows(tmp_path / "run")[-1]["step"] == step


def test_a_run_that_is_there_is_refused_without_resume(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    supervisor = start(command(tmp_path, "--restarts", "2"), devices=1)
    ((status, _, complaint),) = ends([supervisor])
    assert (status, complaint.count("\n")) == (2, 1), complaint
    assert "already holds a run" in complaint


CHILD = """
import os, sys
PRESETS = {"one": None}
def main(argv):
    with open("starts", "a") as file:
        print(*argv, file=file)
    starts = len(open("starts").readlines())
    if starts == 1:
        os.makedirs("run", exist_ok=True)
        open("run/config.json", "w").close()
    sys.exit(int(argv[0].split(",")[starts - 1]))
"""
SUPERVISOR = """
import sys
from pathlib import Path
from jaxformer.config import RunOptions
from jaxformer.runtime.restarts import supervise
sys.exit(supervise(sys.argv[1], sys.argv[2:], RunOptions(run_dir=Path("run"), restarts=2)))
"""


@pytest.mark.parametrize(
    ("statuses", "status", "starts"),
    [
        ("75,1,0", 0, 3),
        ("1,1,1", 1, 3),
        ("2", 2, 1),
        ("1,2", 2, 2),
        ("143", 143, 1),
        ("129", 129, 1),
        ("0", 0, 1),
    ],
)
@pytest.mark.parametrize("was_there", [False, True])
def test_what_is_started_again_and_with_which_flags(tmp_path, statuses, status, starts, was_there):
    (tmp_path / "child.py").write_text(CHILD)
    if was_there:
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "config.json").touch()
    words = [sys.executable, "-c", SUPERVISOR, "child.py", statuses, "--seed", "3"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    first, *others = (tmp_path / "starts").read_text().splitlines()
    assert first == f"{statuses} --seed 3 --restarts 0"
    resume = "" if was_there else " --resume"
    assert others == [f"{statuses} --seed 3{resume} --restarts 0"] * (starts - 1)
    assert done.stderr.count("restart ") == starts - 1


def test_a_restart_traces_nothing(tmp_path):
    """The steps of `--profile` may be done."""
    (tmp_path / "child.py").write_text(CHILD)
    script = SUPERVISOR.replace("restarts=2", "restarts=2, profile='2:3'")
    words = [sys.executable, "-c", script, "child.py", "1,0", "--profile", "2:3"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "starts").read_text().splitlines() == [
        "1,0 --profile 2:3 --restarts 0",
        "1,0 --profile 2:3 --resume --profile None --restarts 0",
    ]


def test_a_child_that_fails_when_it_is_asked_to_end_is_not_started_again(tmp_path):
    (tmp_path / "child.py").write_text(
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)\n"
    )
    supervisor = start([sys.executable, "-c", SUPERVISOR, str(tmp_path / "child.py")])
    assert supervisor.stdout is not None
    assert supervisor.stdout.readline() == "ready\n"
    supervisor.send_signal(signal.SIGTERM)
    assert ends([supervisor]) == [(143, "", "")]


@pytest.mark.slow
def test_a_run_whose_supervisor_is_killed_saves_and_ends(tmp_path):
    words = ("--steps", "100000", *ONE_SAVE_A_STEP, "--restarts", "3")
    supervisor = start(command(tmp_path, *words), devices=1)
    while len(rows(tmp_path / "run")) < 3:
        assert supervisor.poll() is None, supervisor.communicate()
        time.sleep(0.05)
    supervisor.kill()
    ((_, output, _),) = ends([supervisor])  # its child holds the other end of the output
    step = checkpoint.steps(tmp_path / "run" / "checkpoints")[-1]
    assert f"SIGTERM: saved step {step}" in output
