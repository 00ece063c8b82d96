"""`--restarts N`: the run is a child process, which is started again when it crashes.

Every exit status is a crash except 0, 2 (bad input would be bad again), 141 (nobody reads the
output), and those of signals that asked the run to end, such as 130 and 143; the supervisor passes
them on. An error of the program itself (1) counts as a crash: those of devices and networks look
the same. Of several processes each has its own supervisor; when one process dies the others end
too, and all reconnect.
"""

import ctypes
import signal
import subprocess
import sys
from collections.abc import Sequence
from types import FrameType

from jaxformer.config import RunOptions
from jaxformer.runtime.signals import ENDING, listen, unlisten

FINAL = (0, 2, 128 + signal.SIGPIPE, *(128 + number for number in ENDING))
"""Exit statuses after which nothing is started again."""


def supervise(recipe: str, argv: Sequence[str], options: RunOptions) -> int:
    """`jaxformer train RECIPE ARGV`, up to `options.restarts` times again; its last exit status."""
    command = [sys.executable, "-m", "jaxformer", "train", recipe]
    asked: list[int] = []
    own = not _has_begun(options)  # an older run is resumed only if --resume was given
    child: subprocess.Popen[bytes] | None = None

    def pass_on(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        if child is not None:
            child.send_signal(number)

    before = {number: listen(number, pass_on) for number in ENDING}
    try:
        status = 0
        for start in range(options.restarts + 1):
            if asked:
                return 128 + asked[0]
            if start:
                line = f"the run ended with status {status}; restart {start} of {options.restarts}"
                print(f"jaxformer train {recipe}: {line}", file=sys.stderr, flush=True)
            resume = ["--resume"] if own and _has_begun(options) else []
            # Steps to trace may be done.
            untraced = ["--profile", "None"] if start and options.profile else []
            # A group of its own: Ctrl-C on a terminal comes to this process and is passed on, once.
            child = subprocess.Popen(
                [*command, *argv, *resume, *untraced, "--restarts", "0"],
                process_group=0,
                preexec_fn=_end_with_parent,
            )
            if asked:
                child.send_signal(asked[0])
            status = child.wait()
            status = 128 - status if status < 0 else status
            child = None
            if status in FINAL:
                break
        return status
    finally:
        for number, handler in before.items():
            unlisten(number, handler)


def _has_begun(options: RunOptions) -> bool:
    """Whether there is a run to resume."""
    return (options.run_dir / "config.json").is_file()


def _end_with_parent() -> None:
    """Let Linux send SIGTERM to the run when its supervisor is killed: it saves, and ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, int(signal.SIGTERM))  # 1 is PR_SET_PDEATHSIG
