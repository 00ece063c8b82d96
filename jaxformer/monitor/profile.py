"""A trace of some steps of a run, for https://ui.perfetto.dev, and what took the time in it.

JAX's profiler writes the events of host and devices in the format of Chrome's trace viewer, and the
same for TensorBoard (`plugins/profile`). An operation's time is its own, without that of those
inside it, such as the body of a loop.
Sources: https://docs.jax.dev/en/latest/profiling.html; the "Trace Event Format" of Chromium.
"""

import collections
import gzip
import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

import jax

from jaxformer.atomic import atomic_write
from jaxformer.errors import UserError
from jaxformer.units import short_time

TOP = 10
"""Operations that are printed."""


class Operation(NamedTuple):
    """An operation of a compiled program, in all calls of a trace."""

    name: str
    """As XLA calls it; a kernel's own name where XLA did not name it."""
    seconds: float
    """Its own time."""
    share: float
    """Of the time of all operations."""


class Profiler:
    """Traces the given steps into a directory, then prints the operations that took longest.

    It waits for the devices before the first step and after the last, so that the trace has these
    steps alone. A context, at whose end a trace of a run that ends early is written too.
    """

    def __init__(self, steps: range, directory: Path, write: Callable[[str], None]):
        """Of no step, it does nothing.

        Args:
            steps: to trace.
            directory: for the traces.
            write: prints a line.
        """
        self._steps, self._directory, self._write = steps, directory, write
        self._is_tracing = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_tracing:
            jax.profiler.stop_trace()

    def before(self, step: int, state: Any) -> None:
        """Begin with the first step, when all that the state depends on is computed."""
        if self._steps and step == self._steps[0]:
            jax.block_until_ready(state)
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # it slows down the host and fills the trace
            jax.profiler.start_trace(self._directory, profiler_options=options)
            self._is_tracing = True

    def after(self, step: int, state: Any) -> None:
        """End with the last step, when its state is computed."""
        if not self._is_tracing or step != self._steps[-1]:
            return
        jax.block_until_ready(state)
        jax.profiler.stop_trace()
        self._is_tracing = False
        first, count = self._steps[0], len(self._steps)
        file = self._directory / f"steps-{first}-{step}.json.gz"
        write_for_perfetto(self._directory, file)
        self._write(f"trace of steps {first} to {step}: {file}; https://ui.perfetto.dev opens it")
        operations = top_operations(file)
        total = short_time(sum(each.seconds for each in operations) / count)
        self._write(f"operations by their share of {total} per step:")
        for name, seconds, share in operations[:TOP]:
            self._write(f"{share:7.1%} · {short_time(seconds / count)} per step · {name}")


def require_profiled(steps: range, start: int, last: int) -> None:
    """Refuse to trace steps that the run does not take after `start`, up to `last`."""
    if steps and not start < steps[0] <= steps[-1] <= last:
        choose = f"choose from {start + 1}:{last}" if start < last else "no step is left"
        raise UserError(
            f"profile {steps[0]}:{steps[-1]} is not among the steps that the run takes: {choose}"
        )


def write_for_perfetto(directory: Path, file: Path) -> None:
    """Copy JAX's newest trace in the directory, without the metadata that Perfetto refuses."""
    newest = max(
        directory.glob("plugins/profile/*/*.trace.json.gz"), key=lambda p: p.stat().st_mtime
    )
    with gzip.open(newest) as source:
        trace = json.load(source)
    trace.pop("metadata", None)
    with atomic_write(file) as target, gzip.GzipFile(fileobj=target, mode="wb") as packed:
        packed.write(json.dumps(trace).encode())


def top_operations(file: Path) -> list[Operation]:
    """The operations in a trace, those first that took longest."""
    with gzip.open(file) as source:
        events = json.load(source)["traceEvents"]
    named = {
        event["pid"]: event["args"]["name"]
        for event in events
        if event.get("ph") == "M" and event["name"] == "process_name"
    }
    seconds: dict[str, float] = collections.defaultdict(float)
    for event, own in own_times(event for event in events if event.get("ph") == "X"):
        operation = event.get("args", {}).get("hlo_op")
        is_kernel = re.match(r"/device:GPU", named.get(event["pid"], ""))
        if operation or is_kernel:
            seconds[operation or event["name"]] += own
    total = sum(seconds.values())
    longest = sorted(seconds.items(), key=lambda item: -item[1])
    return [Operation(name, each, each / total) for name, each in longest]


def own_times(events: Iterable[Mapping[str, Any]]) -> list[tuple[Mapping[str, Any], float]]:
    """Complete events, and the seconds of each outside of the events inside it on its thread."""
    ordered = sorted(events, key=lambda e: (e["pid"], e["tid"], e["ts"], -e.get("dur", 0.0)))
    own = [event.get("dur", 0.0) for event in ordered]
    around: list[int] = []  # events that have not ended, the innermost last
    for index, event in enumerate(ordered):
        while around and not _holds(ordered[around[-1]], event):
            around.pop()
        if around:
            own[around[-1]] -= event.get("dur", 0.0)
        around.append(index)
    return [(event, max(0.0, time) * 1e-6) for event, time in zip(ordered, own, strict=True)]


def _holds(outer: Mapping[str, Any], event: Mapping[str, Any]) -> bool:
    is_same = (outer["pid"], outer["tid"]) == (event["pid"], event["tid"])
    return is_same and event["ts"] < outer["ts"] + outer.get("dur", 0.0)
