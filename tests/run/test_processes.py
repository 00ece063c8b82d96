"""Several processes as one run: the same losses, one step saved by all, the lost one named."""

import os
import signal
import time
from pathlib import Path

import jax
import pytest

from jaxformer import checkpoint
from jaxformer.config import MeshConfig, RunOptions
from jaxformer.errors import TRY_AGAIN
from jaxformer.run.loop import train
from jaxformer.sharding.mesh import make_mesh
from jaxformer.tasks.config_io import load_config
from tests import processes
from tests.processes import (
    child_of,
    command,
    ends,
    free_port,
    meeting,
    rows,
    start,
    start_two,
    wait_for_rows,
)

FOREVER = ("--steps", "100000", "--checkpoint.every", "1000000", "--eval-every", "1000000")


def go_on(run_dir: Path, devices: int, until: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Resume in this process on so many of its devices."""
    monkeypatch.setattr(
        "jaxformer.run.loop.make_mesh", lambda _: make_mesh(MeshConfig(), jax.devices()[:devices])
    )
    options = RunOptions(run_dir=run_dir, resume=True, stop_after=until)
    train(load_config(run_dir / "config.json"), options)


def assert_equal_runs(run_dir: Path, whole: Path) -> None:
    ours, theirs = rows(run_dir), rows(whole)
    assert [(row["step"], row["split"]) for row in ours] == [
        (row["step"], row["split"]) for row in theirs
    ]
    for our, their in zip(ours, theirs, strict=True):
        assert our["loss"] == pytest.approx(their["loss"], abs=2e-6), our


def slurm(process: int, port: int) -> dict[str, str]:
    """What SLURM tells the processes of a job of two on one node."""
    return {
        "SLURM_JOB_ID": "1",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": "2",
        "SLURM_PROCID": str(process),
        "SLURM_LOCALID": str(process),
        "JAX_COORDINATOR_PORT": str(port),
        "JAX_COORDINATOR_BIND_ADDRESS": f"127.0.0.1:{port}",
    }


@pytest.mark.slow
def test_a_run_moves_from_2x4_devices_to_fewer_and_back(tmp_path, monkeypatch):
    devices = (8, 4, 1)
    monkeypatch.setenv("JAXFORMER_CACHE", str(tmp_path / "cache"))
    last = 6 + 2 * len(devices)
    words = ("--steps", str(last), "--checkpoint.every", "2")
    run_dir = tmp_path / "run"
    for status, _, complaint in ends(start_two(tmp_path, *words, "--stop-after", "3")):
        assert (status, complaint) == (0, "")
    assert {path.name for path in run_dir.iterdir()} == {
        *("config.json", "tokenizer.json", "metrics.jsonl", "checkpoints", "curves.png", ".lock")
    }
    config = load_config(run_dir / "config.json")
    train(config, RunOptions(run_dir=tmp_path / "whole"))
    for index, number in enumerate(devices):
        go_on(run_dir, number, 5 + 2 * index, monkeypatch)
    port = free_port()
    words = [*command(tmp_path, *words), "--resume", "--mesh.fsdp", "4", "--distributed.auto"]
    pair = [start(words, devices=4, environment=slurm(i, port)) for i in (0, 1)]
    (first, output, complaint), (second, silence, complaint_of_second) = ends(pair)
    assert (first, complaint, second, complaint_of_second) == (0, "", 0, "")
    assert "mesh data 2 x fsdp 4" in output
    assert f"resumed from step {3 + 2 * len(devices)}" in output
    assert "step" not in silence, "only the first process speaks"
    assert_equal_runs(run_dir, tmp_path / "whole")


def test_sigterm_to_one_of_two_saves_one_step_and_ends_both(tmp_path):
    pair = start_two(tmp_path, *FOREVER)
    wait_for_rows(pair[0], tmp_path / "run", 5)
    pair[1].send_signal(signal.SIGTERM)
    (first, output, complaint), (second, _, _) = ends(pair)
    assert (first, second) == (143, 143), complaint
    (step,) = checkpoint.steps(tmp_path / "run" / "checkpoints")
    assert f"saved step {step}" in output
    assert rows(tmp_path / "run")[-1]["step"] == step


@pytest.mark.slow
def test_sigterm_to_one_of_two_breaks_off_the_evaluation_of_both(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "TEXT", 300 * processes.TEXT)
    evaluation = ("--eval-every", "5", "--eval-tokens", "10000000")
    pair = start_two(tmp_path, *FOREVER, *evaluation)
    wait_for_rows(pair[0], tmp_path / "run", 5)
    time.sleep(2)
    pair[1].send_signal(signal.SIGTERM)
    assert [status for status, _, _ in ends(pair)] == [143, 143]
    assert checkpoint.steps(tmp_path / "run" / "checkpoints") == [5]
    assert [row["split"] for row in rows(tmp_path / "run")] == ["train"] * 5


def lose(directory: Path, lost: int, number: signal.Signals) -> None:
    """Take one of two processes away, and look at how the other one ends."""
    pair = start_two(directory, *FOREVER)
    wait_for_rows(pair[0], directory / "run", 5)
    other = pair[1 - lost]
    pair[lost].send_signal(number)
    try:
        ((status, _, complaint),) = ends([other], 120)
    finally:
        pair[lost].kill()
        pair[lost].communicate()
    assert status == TRY_AGAIN, complaint
    last = complaint.splitlines()[-1]
    assert f"process {1 - lost} of 2 had to end: process {lost} (" in last
    assert f"pid {pair[lost].pid}" in last
    assert "start them all again with --resume" in last


@pytest.mark.slow
def test_a_frozen_process_is_named_by_the_one_that_ends(tmp_path):
    lose(tmp_path, 1, signal.SIGSTOP)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("lost", [0, 1])
@pytest.mark.parametrize("time", range(3))
def test_a_lost_process_is_named_every_time(tmp_path, lost, number, time):
    lose(tmp_path, lost, number)


def test_processes_that_were_started_differently_refuse_to_train(tmp_path):
    port = free_port()
    pair = [
        start(
            [*command(tmp_path, *FOREVER, "--optimizer.beta2", beta2), *meeting(process, port)],
            devices=4,
        )
        for process, beta2 in ((0, "0.99"), (1, "0.98"))
    ]
    for status, _, complaint in ends(pair):
        assert (status, complaint.count("\n")) == (2, 1), complaint
        assert "process 1 was started with other flags" in complaint
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
def test_all_processes_meet_again_after_one_was_killed(tmp_path, monkeypatch, lost):
    monkeypatch.setenv("JAXFORMER_CACHE", str(tmp_path / "cache"))
    run_dir = tmp_path / "run"
    pair = start_two(tmp_path, "--steps", "60", "--checkpoint.every", "1", "--restarts", "2")
    wait_for_rows(pair[0], run_dir, 5)
    os.kill(child_of(pair[lost]), signal.SIGKILL)
    for status, _, complaint in ends(pair):
        assert status == 0, complaint
        assert "restart 1 of 2" in complaint
    train(load_config(run_dir / "config.json"), RunOptions(run_dir=tmp_path / "whole"))
    assert_equal_runs(run_dir, tmp_path / "whole")
