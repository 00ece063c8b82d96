"""Signals as requests: those that come together are one, a later one ends the process at once."""

import os
import signal
import subprocess
import sys

import pytest

from jaxformer.runtime import signals
from jaxformer.runtime.signals import PreemptionGuard

PLEADING = """
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


@pytest.mark.parametrize("full", [False, True])
def test_a_later_signal_ends_the_process_even_if_it_cannot_say_so(full: bool) -> None:
    with open("/dev/full", "w") as nowhere:
        errors = nowhere if full else subprocess.PIPE
        done = subprocess.run([sys.executable, "-c", PLEADING], stderr=errors, text=True)
    assert done.returncode == 130
    if not full:
        assert done.stderr == "stopped before the step was saved\n"
