"""Heartbeats of the processes of a run: they tell which one has died or froze.

JAX's coordination service aborts all processes when one is lost, but does not say which. So every
process writes a heartbeat each second into JAX's key-value store, and reads those of the others.
"""

import os
import socket
import threading
import time
from typing import Any

from jax._src.distributed import global_state  # the store has no public door; Orbax does the same

INTERVAL = 1.0
"""Seconds between two heartbeats."""
SILENT = 3.0
"""Seconds without a heartbeat after which a process is named as lost when the run is aborted; JAX
aborts it after six or more, and then the store can no longer be read."""


class HeartbeatMonitor:
    """Writes the heartbeats of this process and knows when each other one was last heard of."""

    def __init__(self, process: int, count: int):
        now = time.monotonic()
        self.process = process
        self.count = count
        self.store: Any = global_state.client
        self._address = global_state.coordinator_address
        self._answered = now
        self._heard = dict.fromkeys(range(count), ("", now))
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Begin to write and read heartbeats."""
        self._thread.start()

    def stop(self) -> None:
        """End it."""
        self._done.set()
        self._thread.join()

    def exit_message(self) -> str:
        """Which processes are lost, to be said by a process that is aborted.

        Gloo may abort it before a process counts as silent: then this waits until one does.
        """
        deadline = time.monotonic() + SILENT + 2 * INTERVAL
        while not (silent := self._silent()) and time.monotonic() < deadline:
            time.sleep(INTERVAL / 10)
        if self.process == 0:
            time.sleep(2 * INTERVAL)  # the others read the store, which ends with this process
        me = f"process {self.process} of {self.count} had to end"
        if not silent:
            return f"{me}: JAX's runtime says why, above"
        return f"{me}: {', '.join(map(self._name, silent))} died or froze"

    def _silent(self) -> list[int]:
        if self.process != 0 and time.monotonic() - self._answered > SILENT:
            return [0]  # the store is gone with its process: nothing is known of the others
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
        number = 0
        while True:
            number += 1
            try:
                self.store.key_value_set(
                    f"jaxformer/alive/{self.process}", f"{me} {number}", allow_overwrite=True
                )
                rows = self.store.key_value_dir_get("jaxformer/alive/")
            except Exception:
                pass  # a passing fault, or process 0 is gone: `_answered` shows for how long
            else:
                self._answered = now = time.monotonic()
                for key, heartbeat in rows:
                    process = int(key.rpartition("/")[2])
                    if heartbeat != self._heard[process][0]:
                        self._heard[process] = heartbeat, now
            if self._done.wait(INTERVAL):
                return
