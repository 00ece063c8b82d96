"""Several processes as one run: how they find each other, agree, part, and say who is missing.

Every process owns devices of its own and runs the same program. JAX's coordination service, which
lives in process 0, notices within `HEARTBEAT` seconds that a process has died or froze, and aborts
the others, as it does at once when process 0 itself dies: whoever is aborted says in a last line
who is missing, and exits with `errors.TRY_AGAIN`. To know that, processes leave a sign of life
every second in JAX's key-value store, to which jax has no public door; Orbax goes the same way.
Source: https://docs.jax.dev/en/latest/multi_process.html
"""

import contextlib
import ctypes
import ipaddress
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

HEARTBEAT = 10
"""Seconds without a heartbeat after which JAX takes a process for dead."""
BEAT = 1.0
"""Seconds between two of our signs of life."""
SILENT = 3.0
"""Seconds without one after which a process is named when the run is aborted; JAX aborts it after
six or more, and then nobody can look any more."""
GRACE = 5.0
"""Seconds that process 0 leaves the others to end by themselves; fewer than `HEARTBEAT`."""
PATIENCE = 7 * 24 * 3600
"""Seconds to wait for another process's word; that it lives is the heartbeat's business."""

_LIBC_SIGNAL = ctypes.CFUNCTYPE(None, ctypes.c_int)
_last_words: Callable[[], tuple[str, int]] | None = None
_aborting = threading.Lock()  # several threads of Gloo may find the same process lost
_stderr = 2
_roll: "HeartbeatMonitor | None" = None


def join(config: DistributedConfig) -> None:
    """Meet the other processes of the run; nothing happens without flags that say how.

    To be called before jax first looks at a device.

    Raises:
        UserError: when nothing was detected, the address cannot be had, or jax runs already. Where
            the others do not come in time, JAX's runtime aborts, and the process ends here with
            one line and status 75.
    """
    global _roll
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
    _say_when_aborted(lambda: (_not_all_came(config), TRY_AGAIN))
    with _standard_error_held_back():
        try:
            jax.distributed.initialize(
                **explicit,
                initialization_timeout=config.timeout,
                heartbeat_timeout_seconds=HEARTBEAT,
            )
        except Exception as error:
            raise UserError(_not_started(config, error)) from error
    _roll = roll = HeartbeatMonitor(global_state.process_id, global_state.num_processes)
    again = "start them all again with --resume"
    _say_when_aborted(lambda: (f"{roll.last_word()}; {again}", TRY_AGAIN))
    roll.start()


def is_first() -> bool:
    """Whether this is the process that writes for all."""
    return jax.process_index() == 0


def agree(what: str) -> None:
    """Wait until every process has said its word, and refuse to go on if one says another.

    Raises:
        UserError: in every process, naming the first one that differs.
    """
    if _roll is None:
        return
    _roll.words += 1
    words_at = f"jaxformer/word/{_roll.words}"
    _roll.store.key_value_set(f"{words_at}/{_roll.process}", what)
    words = [
        _roll.store.blocking_key_value_get(f"{words_at}/{process}", PATIENCE * 1000)
        for process in range(_roll.count)
    ]
    for process, word in enumerate(words):
        if word != words[0]:
            _part()  # all refuse alike, and none is to be taken for dead
            raise UserError(
                f"process {process} was started with other flags, data or versions than process 0, "
                "or sees another run directory: start all alike, on one shared file system"
            )


def leave(exit_status: int) -> None:
    """Wait for the others and part from them; every process but the first ends here.

    Raises:
        SystemExit: with the status, in every process but the first.
    """
    if _roll is not None:
        process = _roll.process
        _part()
        if process:
            raise SystemExit(exit_status)


def _part() -> None:
    global _roll
    assert _roll is not None
    jax.distributed.shutdown()  # waits for the others, who look for signs of life as long
    _roll.stop()
    _roll = None
    _say_when_aborted(None)


@contextlib.contextmanager
def lost_processes_named() -> Iterator[None]:
    """Give JAX time to notice a lost process whose loss shows first as an error of something else.

    It then aborts this process, which says who is lost; if it does not, the error stands. Only what
    this process refuses by itself is an error of its own for certain.
    """
    try:
        yield
    except Exception as error:
        own = isinstance(error, UserError) and error.__cause__ is None
        if _roll is not None and not own:
            time.sleep(1.5 * HEARTBEAT)
        raise


def break_off(exit_status: int) -> None:
    """End a process that failed among others without the goodbye.

    JAX says goodbye when Python ends, and waits for the others, who are waiting for this one.
    """
    if _roll is not None:
        try:
            with contextlib.suppress(OSError):
                sys.stdout.flush()
                sys.stderr.flush()
            let_the_others_speak()  # what is wrong here may be wrong everywhere
        finally:
            os._exit(exit_status)


def let_the_others_speak() -> None:
    """Let the others come to an end of their own first: that of process 0 ends them at once.

    That of another process is only noticed when its heartbeat is missed.
    """
    if _roll is not None and _roll.process == 0 and _roll.count > 1:
        time.sleep(GRACE)


class HeartbeatMonitor:
    """Who was last heard of when, by the signs of life that each process leaves."""

    def __init__(self, process: int, count: int):
        now = time.monotonic()
        self.process = process
        self.count = count
        self.words = 0
        self.store: Any = global_state.client
        self._address = global_state.coordinator_address
        self._answered = now
        self._heard = dict.fromkeys(range(count), ("", now))
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="signs of life", daemon=True)

    def start(self) -> None:
        """Leave a sign of life every second from now on, and look for those of the others."""
        self._thread.start()

    def stop(self) -> None:
        """Leave no more."""
        self._done.set()
        self._thread.join()

    def last_word(self) -> str:
        """Who is missing, said by a process that was aborted.

        Gloo may abort it sooner than a silence can be told: then this takes as long as one.
        """
        deadline = time.monotonic() + SILENT + 2 * BEAT
        while not (silent := self._silent()) and time.monotonic() < deadline:
            time.sleep(BEAT / 10)
        if self.process == 0:
            time.sleep(2 * BEAT)  # the others look into the store that ends with this process
        me = f"process {self.process} of {self.count} had to end"
        if not silent:
            return f"{me}: JAX's runtime says why, above"
        return f"{me}: {', '.join(map(self._name, silent))} died or froze"

    def _silent(self) -> list[int]:
        if self.process != 0 and time.monotonic() - self._answered > SILENT:
            return [0]  # the store died with its process, and tells nothing of the others
        others = [other for other in range(self.count) if other != self.process]
        return [other for other in others if self._answered - self._heard[other][1] > SILENT]

    def _name(self, process: int) -> str:
        where = self._heard[process][0].rpartition(" ")[0]
        known = [where] if where else []
        if process == 0:
            known.append(f"coordinator at {self._address}")
        return f"process {process}" + (f" ({', '.join(known)})" if known else "")

    def _beat(self) -> None:
        me = f"{socket.gethostname()}, pid {os.getpid()}"
        beat = 0
        while True:
            beat += 1
            try:
                self.store.key_value_set(
                    f"jaxformer/alive/{self.process}", f"{me} {beat}", allow_overwrite=True
                )
                rows = self.store.key_value_dir_get("jaxformer/alive/")
            except Exception:
                pass  # a passing fault, or process 0 is gone: how long it gave no answer tells
            else:
                self._answered = now = time.monotonic()
                for key, sign in rows:
                    process = int(key.rpartition("/")[2])
                    if sign != self._heard[process][0]:
                        self._heard[process] = sign, now
            if self._done.wait(BEAT):
                return


def _is_loopback(address: str) -> bool:
    """Whether an address says by itself that all processes are on this machine."""
    host = address.rpartition(":")[0].strip("[]")
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def _require_free(address: str) -> None:
    """Refuse a port that is taken: gRPC would share it with its owner, and mix up two runs.

    Only a loopback address is bound. What the others are given may be nobody's here: the address of
    a service, or a name that /etc/hosts maps to loopback on its own machine.
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
        return f"the processes of this job did not all meet {within}: look at the others' messages"
    if config.process == 0:
        return (
            f"not all {config.processes} processes came to {config.coordinator} {within}: start "
            "the others, each with its own --distributed.process, and check the address"
        )
    return (
        f"process {config.process} of {config.processes} met no run of so many processes at "
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


def _say_when_aborted(words: Callable[[], tuple[str, int]] | None) -> None:
    """Let a process that JAX's runtime aborts end with this line and status instead."""
    global _last_words
    _last_words = words
    handler = _on_abort if words else ctypes.cast(0, _LIBC_SIGNAL)
    ctypes.CDLL(None).signal(int(signal.SIGABRT), handler)


@_LIBC_SIGNAL
def _on_abort(_: int) -> NoReturn:
    # Python's own handlers run between two of the main thread's instructions: too late for this.
    status = 1
    with _aborting:
        try:
            line, status = _last_words() if _last_words else ("aborted", status)
            os.write(_stderr, f"error: {line}\n".encode())
        finally:
            os._exit(status)


@contextlib.contextmanager
def _standard_error_held_back() -> Iterator[None]:
    """Keep what the runtime complains about to itself if the block fails; our line says it all."""
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
