"""Training runs that are killed or told to end at any moment: no completed step is lost."""

import contextlib
import dataclasses
import os
import random
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from jaxformer import checkpoint
from jaxformer.config import CheckpointConfig, LanguageConfig
from jaxformer.errors import TRY_AGAIN
from jaxformer.run.load import load_run
from tests.processes import free_port, meeting
from tests.run.forked import PATIENCE, newest, training, wait_for
from tests.run.tiny import flags, tiny_config, train_losses, whole_state


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LanguageConfig:
    monkeypatch.setenv("JAXFORMER_CACHE", str(tmp_path / "cache"))
    return tiny_config(tmp_path, steps=100_000)


def under_way(run_dir: Path) -> bool:
    """Whether a save or a deletion is under way."""
    return any((run_dir / "checkpoints").glob(".[st]*"))


def kill_and_resume(config: LanguageConfig, directory: Path, kills: int, in_saves: int = 0) -> int:
    """Kill a run and check it each time, until so many kills of all fell into a save."""
    run_dir, log = directory / "run", directory / "log"
    environment = {"JAXFORMER_CACHE": str(directory / "cache")}
    words = [*flags(config, run_dir), "--resume"]
    rng, number, during_saves, reached = random.Random(0), 0, 0, 0
    while number < kills or during_saves < in_saves:
        with training(words if number else words[:-1], log, **environment) as process:
            if number % 8 == 3:  # before its first step, while it reads and hashes
                time.sleep(rng.uniform(0, 2))
            else:
                wait_for(lambda: newest(run_dir) > reached, process, log)  # noqa: B023
                if rng.random() < 0.75:
                    wait_for(lambda: under_way(run_dir), process, log)
                time.sleep(rng.uniform(0, 0.05))
            seen = newest(run_dir)
            process.kill()
            process.join()
        number += 1
        during_saves += under_way(run_dir)
        reached = nothing_is_lost(run_dir, seen, reached)

    def run(words: list[str]) -> None:
        with training(words, log, **environment) as process:
            process.join(PATIENCE)
            assert process.exitcode == 0, log.read_text()

    ends_as_if_never_killed(config, directory, reached, run)
    assert "Traceback" not in log.read_text()
    return number


def nothing_is_lost(run_dir: Path, seen: int, reached: int) -> int:
    """The newest step after a kill; one that was complete before is there, all can be read."""
    listed = checkpoint.steps(run_dir / "checkpoints")
    assert listed[-1] >= seen >= reached, "a completed step is lost"
    for step in listed:
        assert load_run(run_dir, step=step).step == step
        checkpoint.read_metadata(run_dir / "checkpoints", step)  # the optimizer's files verify too
    return listed[-1]


def ends_as_if_never_killed(
    config: LanguageConfig, directory: Path, reached: int, run: Callable[[list[str]], None]
) -> None:
    """After three more steps the run's state and losses are those of an uninterrupted one."""
    run_dir, whole, until = directory / "run", directory / "whole", str(reached + 3)
    run([*flags(config, run_dir), "--resume", "--stop-after", until])
    rare = dataclasses.replace(config, checkpoint=CheckpointConfig(every=10**6, keep=1))
    run([*flags(rare, whole), "--stop-after", until])
    ends = [checkpoint.state_hash(whole_state(config, place)) for place in (run_dir, whole)]
    assert ends[0] == ends[1]
    assert train_losses(run_dir) == train_losses(whole)
    assert [step for step, _ in train_losses(run_dir)] == list(range(1, reached + 4))
    assert not under_way(run_dir), "what a kill left behind is cleared away"


def test_killed_at_any_moment_a_run_loses_nothing(config: LanguageConfig, tmp_path: Path) -> None:
    kill_and_resume(config, tmp_path, 4)


@pytest.mark.slow
def test_killed_200_times_mostly_in_saves_a_run_loses_nothing(
    config: LanguageConfig, tmp_path: Path
) -> None:
    kills = kill_and_resume(config, tmp_path, 200, in_saves=101)
    print(f"{kills} kills, at least 101 of them in a save or a deletion")


def end_and_resume(config: LanguageConfig, directory: Path, times: int) -> None:
    """End a run by SIGTERM and SIGINT in turn, each time soon."""
    run_dir, log = directory / "run", directory / "log"
    environment = {"JAXFORMER_CACHE": str(directory / "cache")}
    words = [*flags(config, run_dir), "--resume"]
    rng, reached = random.Random(1), 0
    for index in range(times):
        number, status = ((signal.SIGTERM, 143), (signal.SIGINT, 130))[index % 2]
        began = time.monotonic()
        with training(words if index else words[:-1], log, **environment) as process:
            wait_for(lambda: newest(run_dir) > reached, process, log)  # noqa: B023
            time.sleep(rng.uniform(0, 0.3))
            assert process.pid is not None
            asked = time.monotonic()
            os.kill(process.pid, number)
            process.join(PATIENCE)
            assert_soon(5, began, asked)
            assert process.exitcode == status, log.read_text()
        assert not (run_dir / "curves.png").exists(), "nobody waits for a picture"
        assert f"curves with: jaxformer plot {run_dir};" in log.read_text()
        reached = newest(run_dir)
        steps = [step for step, _ in train_losses(run_dir)]
        assert steps == list(range(1, reached + 1)), "the last step is not on disk"
        assert log.read_text().count(f"{number.name}: saved step {reached} of ") == 1
        assert load_run(run_dir).step == reached
    assert "Traceback" not in log.read_text()


def assert_soon(seconds: float, began: float, asked: float) -> None:
    """A process asked to end has ended in time; a slow machine's start took longer as well."""
    assert time.monotonic() - asked < max(seconds, asked - began)


def test_a_signal_at_any_moment_saves_the_step(config: LanguageConfig, tmp_path: Path) -> None:
    end_and_resume(config, tmp_path, 4)


@pytest.mark.slow
def test_40_signals_each_save_the_step_within_5_seconds(
    config: LanguageConfig, tmp_path: Path
) -> None:
    end_and_resume(config, tmp_path, 40)


@contextlib.contextmanager
def two(words: Sequence[str], directory: Path, logs: Sequence[Path]) -> Iterator[list[BaseProcess]]:
    """Two processes of one device each as one run."""
    port = free_port()
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(
                training(
                    [*words, *meeting(process, port)],
                    logs[process],
                    JAXFORMER_CACHE=str(directory / "cache"),
                )
            )
            for process in (0, 1)
        ]


def kill_of_two_and_resume(config: LanguageConfig, directory: Path, kills: int) -> None:
    """Kill the first, the second or both of two processes so often, and check the run each time.

    The one that is left has to end by itself, within 30 seconds, and to name the other.
    """
    run_dir, logs = directory / "run", [directory / f"log{process}" for process in (0, 1)]
    words = [*flags(config, run_dir), "--resume"]
    rng, reached = random.Random(3), 0
    for number in range(kills):
        began = time.monotonic()
        with two(words if number else words[:-1], directory, logs) as pair:
            wait_for(lambda: newest(run_dir) > reached, pair[0], logs[0])  # noqa: B023
            if rng.random() < 0.75:
                wait_for(lambda: under_way(run_dir), pair[0], logs[0])
            time.sleep(rng.uniform(0, 0.05))
            seen = newest(run_dir)
            lost = ([0], [1], [0, 1])[number % 3]
            for process in lost:
                pair[process].kill()
            killed = time.monotonic()
            for other in {0, 1}.difference(lost):
                pair[other].join(PATIENCE)
                assert_soon(30, began, killed)
                assert pair[other].exitcode == TRY_AGAIN, logs[other].read_text()
                last = logs[other].read_text().splitlines()[-1]
                assert f"process {other} of 2 had to end: process {1 - other} (" in last
                assert f"pid {pair[1 - other].pid}" in last
            for process in lost:
                pair[process].join()
        reached = nothing_is_lost(run_dir, seen, reached)

    def run(words: list[str]) -> None:
        with two(words, directory, logs) as pair:
            for process, log in zip(pair, logs, strict=True):
                process.join(PATIENCE)
                assert process.exitcode == 0, log.read_text()

    ends_as_if_never_killed(config, directory, reached, run)
    for log in logs:
        assert "Traceback" not in log.read_text()


def test_killed_at_any_moment_a_run_of_two_processes_loses_nothing(
    config: LanguageConfig, tmp_path: Path
) -> None:
    kill_of_two_and_resume(config, tmp_path, 1)


@pytest.mark.slow
def test_killed_30_times_a_run_of_two_processes_loses_nothing(
    config: LanguageConfig, tmp_path: Path
) -> None:
    kill_of_two_and_resume(config, tmp_path, 30)


@pytest.mark.slow
def test_42_signals_to_one_or_both_of_two_processes_save_the_step_within_5_seconds(
    config: LanguageConfig, tmp_path: Path
) -> None:
    run_dir, logs = tmp_path / "run", [tmp_path / f"log{process}" for process in (0, 1)]
    words = [*flags(config, run_dir), "--resume"]
    rng, reached = random.Random(4), 0
    for index in range(42):
        began = time.monotonic()
        number, status = ((signal.SIGTERM, 143), (signal.SIGINT, 130))[index % 2]
        asked = ([0], [1], [0, 1])[index // 2 % 3]  # launchers such as SLURM ask all at once
        with two(words if index else words[:-1], tmp_path, logs) as pair:
            wait_for(lambda: newest(run_dir) > reached, pair[0], logs[0])  # noqa: B023
            time.sleep(rng.uniform(0, 0.3))
            pids = [process.pid for process in pair]
            signalled = time.monotonic()
            for process in asked:
                pid = pids[process]
                assert pid is not None
                os.kill(pid, number)
            for process, (one, log) in enumerate(zip(pair, logs, strict=True)):
                one.join(PATIENCE)
                assert one.exitcode == (status if process in asked else 143), log.read_text()
            assert_soon(5, began, signalled)
        reached = newest(run_dir)
        steps = [step for step, _ in train_losses(run_dir)]
        assert steps == list(range(1, reached + 1)), "the last step is not on disk"
        assert f": saved step {reached} of " in logs[0].read_text()
        assert load_run(run_dir).step == reached
    for log in logs:
        assert "Traceback" not in log.read_text()
