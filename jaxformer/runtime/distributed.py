"""Several processes as one run: they join, check that they agree, and shut down together.

Every process owns devices of its own and runs the same program. JAX's coordination service, which
lives in process 0, notices within `HEARTBEAT_TIMEOUT` seconds that a process has died or froze and
aborts the others, as it does at once when process 0 dies. The last line of an aborted process
names the lost one (`HeartbeatMonitor`); its exit status is `errors.TRY_AGAIN`.
Source: https://docs.jax.dev/en/latest/multi_process.html
"""

import contextlib
import ctypes
import ipaddress
import itertools
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import jax
from jax._src.distributed import global_state

from jaxformer.config import DistributedConfig
from jaxformer.errors import TRY_AGAIN, UserError
from jaxformer.runtime.heartbeat import HeartbeatMonitor

HEARTBEAT_TIMEOUT = 10
"""Seconds without a heartbeat after which JAX takes a process for dead."""
GRACE = 5.0
"""Seconds that process 0 leaves the others to end by themselves; fewer than `HEARTBEAT_TIMEOUT`."""
PATIENCE = 7 * 24 * 3600
"""Seconds to wait for another process; the heartbeat detects that it is dead."""

_LIBC_SIGNAL = ctypes.CFUNCTYPE(None, ctypes.c_int)
_exit_message: Callable[[], tuple[str, int]] | None = None
_aborting = threading.Lock()  # several threads of Gloo may find the same process lost
_stderr = 2
_monitor: HeartbeatMonitor | None = None
_checks = itertools.count()


def join(config: DistributedConfig) -> None:
    """Connect to the other processes of the run, if the configuration says that there are any.

    To be called before jax first looks at a device.

    Raises:
        UserError: when no launcher was detected, the address cannot be used, or jax runs already.
            Where the others do not connect in time, JAX's runtime aborts, and the process ends here
            with one line and status 75.
    """
    global _monitor
    if not config.wanted:
        return
    explicit: dict[str, Any] = {}
    if not config.auto:
        explicit = {
            "coordinator_address": config.coordinator,
            "num_processes": config.processes,
            "process_id": config.process,
            "cluster_detection_method": "deactivate",
        }
        if config.process == 0:
            assert config.coordinator is not None
            _require_free(config.coordinator)
            if _is_loopback(config.coordinator):  # else jax listens at all of this machine's
                explicit["coordinator_bind_address"] = config.coordinator
    _exit_when_aborted(lambda: (_not_all_came(config), TRY_AGAIN))
    # gRPC would look for the others behind the proxy of http_proxy; empty means none.
    os.environ.setdefault("grpc_proxy", "")
    logging.getLogger("jax._src.distributed").addFilter(_is_not_about_proxies)
    with _standard_error_captured():
        try:
            jax.distributed.initialize(
                **explicit,
                initialization_timeout=config.timeout,
                heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT,
            )
        except Exception as error:
            raise UserError(_not_started(config, error)) from error
    _monitor = monitor = HeartbeatMonitor(global_state.process_id, global_state.num_processes)
    again = "start them all again with --resume"
    _exit_when_aborted(lambda: (f"{monitor.exit_message()}; {again}", TRY_AGAIN))
    monitor.start()


def is_first() -> bool:
    """Whether this is the process that writes for all."""
    return jax.process_index() == 0


def assert_same_on_all_processes(value: str) -> None:
    """Wait until every process has given its value, and refuse to continue if two differ.

    Raises:
        UserError: in every process, naming the first one that differs.
    """
    if _monitor is None:
        return
    key, store = f"jaxformer/check/{next(_checks)}", _monitor.store
    store.key_value_set(f"{key}/{_monitor.process}", value)
    values = [
        store.blocking_key_value_get(f"{key}/{process}", PATIENCE * 1000)
        for process in range(_monitor.count)
    ]
    for process, other in enumerate(values):
        if other != values[0]:
            _disconnect()  # all processes raise, and none is to be taken for dead
            raise UserError(
                f"process {process} was started with other flags, data or versions than process 0, "
                "or sees another run directory: start all alike, on one shared file system"
            )


def shutdown(exit_status: int) -> None:
    """Wait for the others and disconnect; every process but the first ends here.

    Raises:
        SystemExit: with the status, in every process but the first.
    """
    if _monitor is not None:
        process = _monitor.process
        _disconnect()
        if process:
            raise SystemExit(exit_status)


def _disconnect() -> None:
    global _monitor
    assert _monitor is not None
    jax.distributed.shutdown()  # waits for the others, which still need this one's heartbeats
    _monitor.stop()
    _monitor = None
    _exit_when_aborted(None)


@contextlib.contextmanager
def lost_processes_named() -> Iterator[None]:
    """Give JAX time to notice a lost process whose loss shows first as another error.

    It then aborts this process, which names the lost one; if it does not, the error is raised. Only
    a UserError of this process is certainly its own.
    """
    try:
        yield
    except Exception as error:
        own = isinstance(error, UserError) and error.__cause__ is None
        if _monitor is not None and not own:
            time.sleep(1.5 * HEARTBEAT_TIMEOUT)
        raise


def abort(exit_status: int) -> None:
    """End a process that failed, if there are others, without waiting for them.

    At Python's shutdown JAX would wait for the others, which wait for this one.
    """
    if _monitor is not None:
        try:
            with contextlib.suppress(OSError):
                sys.stdout.flush()
                sys.stderr.flush()
            wait_for_peers()  # what is wrong here may be wrong everywhere
        finally:
            os._exit(exit_status)


def wait_for_peers() -> None:
    """Give the others time to end with messages of their own: the end of process 0 ends them all.

    The end of another process is noticed only when its heartbeat is missed.
    """
    if _monitor is not None and _monitor.process == 0 and _monitor.count > 1:
        time.sleep(GRACE)


def _is_not_about_proxies(record: logging.LogRecord) -> bool:
    return "_proxy" not in record.getMessage()


def _is_loopback(address: str) -> bool:
    """Whether all processes that use this address are on one machine."""
    host = address.rpartition(":")[0].strip("[]")
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def _require_free(address: str) -> None:
    """Refuse a port that is in use: gRPC would share it with its owner, and mix up two runs.

    Only a loopback address is bound. Another address may not belong to this machine: that of a
    service, or a name that /etc/hosts maps to loopback here.
    """
    host, _, port = address.rpartition(":")
    here = host.strip("[]") if _is_loopback(address) else None
    try:
        family, *_, place = socket.getaddrinfo(here, int(port), flags=socket.AI_PASSIVE)[0]
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(place)
            probe.listen()
    except OSError as error:
        raise UserError(
            f"process 0 cannot listen at {address}: {error.strerror}: give an address of this "
            "machine and a free port in --distributed.coordinator"
        ) from error


def _not_all_came(config: DistributedConfig) -> str:
    within = f"within {config.timeout} s (--distributed.timeout)"
    if config.auto:
        return f"not all processes of this job connected {within}: look at the others' messages"
    if config.process == 0:
        return (
            f"not all {config.processes} processes connected to {config.coordinator} {within}: "
            "start the others, each with its own --distributed.process, and check the address"
        )
    return (
        f"process {config.process} could not reach {config.processes} processes at "
        f"{config.coordinator} {within}: check the address, and that process 0 runs"
    )


def _not_started(config: DistributedConfig, error: Exception) -> str:
    reason = str(error) or type(error).__name__
    if config.auto:
        return (
            f"found no SLURM, Open MPI or Kubernetes job that this process belongs to ({reason}): "
            "start it by srun or mpirun (Open MPI 5 takes jax 0.12 and mpi4py), in Kubernetes with "
            "jax[k8s] installed, or name --distributed.coordinator, --distributed.processes and "
            "--distributed.process"
        )
    return f"cannot join the run at {config.coordinator}: {reason}: check the --distributed flags"


def _exit_when_aborted(message: Callable[[], tuple[str, int]] | None) -> None:
    """Let a process that JAX's runtime aborts end with this line and status instead."""
    global _exit_message
    _exit_message = message
    handler = _on_abort if message else ctypes.cast(0, _LIBC_SIGNAL)
    ctypes.CDLL(None).signal(int(signal.SIGABRT), handler)


@_LIBC_SIGNAL
def _on_abort(_: int) -> NoReturn:
    # Python's own handlers run between two instructions of the main thread: too late for this.
    status = 1
    with _aborting:
        try:
            line, status = _exit_message() if _exit_message else ("aborted", status)
            os.write(_stderr, f"error: {line}\n".encode())
        finally:
            os._exit(status)


@contextlib.contextmanager
def _standard_error_captured() -> Iterator[None]:
    """Drop what the runtime prints on standard error if the block fails: our line says it all."""
    global _stderr
    sys.stderr.flush()
    with tempfile.TemporaryFile() as held:
        _stderr = os.dup(2)
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(_stderr, 2)
            os.close(_stderr)
            _stderr = 2
        held.seek(0)
        with open(2, "wb", closefd=False) as shown:
            shutil.copyfileobj(held, shown)
