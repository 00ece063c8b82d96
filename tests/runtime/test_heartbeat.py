"""Heartbeats: a lost process is named, and no other."""

import threading
import time
from collections.abc import Callable
from typing import Any

import jax
import pytest

from jaxformer.runtime import heartbeat
from jaxformer.runtime.heartbeat import HeartbeatMonitor


class Store:
    """JAX's key-value store with the heartbeats of three processes, all alive at first."""

    def __init__(self, fault: Callable[[int], None] = lambda call: None) -> None:
        self.calls = 0
        self.lost: tuple[int, ...] = ()
        self.fault = fault

    def key_value_set(self, *_: Any, **__: Any) -> None:
        self.calls += 1
        self.fault(self.calls)

    def key_value_dir_get(self, _: str) -> list[tuple[str, str]]:
        numbers = ["last" if process in self.lost else str(self.calls) for process in range(3)]
        return [(f"jaxformer/alive/{i}", f"host, pid {i} {n}") for i, n in enumerate(numbers)]


@pytest.fixture
def monitor_of(
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[int, Store], HeartbeatMonitor]:
    """The monitor of one of three processes, by a clock that runs fast."""
    monkeypatch.setattr(heartbeat, "INTERVAL", 0.01)
    monkeypatch.setattr(heartbeat, "SILENT", 2.0)

    def begin(process: int, store: Store) -> HeartbeatMonitor:
        monitor = HeartbeatMonitor(process, 3)
        monitor.store = store
        monitor.start()
        return monitor

    return begin


def test_heartbeats_continue_after_the_store_gave_no_answer(monitor_of):
    def passing(call: int) -> None:
        if call <= 3:
            raise jax.errors.JaxRuntimeError("UNAVAILABLE")

    monitor = monitor_of(0, Store(passing))
    assert monitor.exit_message() == "process 0 of 3 had to end: JAX's runtime says why, above"
    monitor.stop()


@pytest.mark.parametrize("process", [0, 2])
def test_a_process_that_was_lost_a_moment_ago_is_named_and_no_other(monitor_of, process):
    store = Store()
    monitor = monitor_of(process, store)
    time.sleep(0.1)
    store.lost = (1,)
    expected = f"process {process} of 3 had to end: process 1 (host, pid 1) died or froze"
    assert monitor.exit_message() == expected
    monitor.stop()


def test_with_the_store_the_first_process_is_lost(monitor_of):
    def gone(call: int) -> None:
        if call > 3:
            raise jax.errors.JaxRuntimeError("UNAVAILABLE")

    monitor = monitor_of(2, Store(gone))
    time.sleep(0.1)
    assert "had to end: process 0 (host, pid 0, coordinator at None) died" in monitor.exit_message()
    monitor.stop()


def test_a_process_that_cannot_read_the_store_takes_no_other_for_lost(monitor_of):
    """An aborted process may hold the lock that its own store waits for."""
    free = threading.Event()
    monitor = monitor_of(0, Store(lambda call: free.wait(60) if call > 3 else None))
    time.sleep(0.1)
    assert monitor.exit_message() == "process 0 of 3 had to end: JAX's runtime says why, above"
    free.set()
    monitor.stop()
