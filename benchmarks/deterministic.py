"""The cost of `--deterministic`: seconds per train step with and without it.

    python -m benchmarks.deterministic
    python -m benchmarks.deterministic --preset gpu --repetitions 50 --json deterministic.json

The presets are those of `gpt_char`. XLA's flags apply to a whole process, so each side is a
separate process that takes a step on request. Reports the median, fastest and slowest of the
repetitions, and the ratio to the step without the flag.
"""

import argparse
import functools
import os
import subprocess
import sys

import jax

from benchmarks.steps import compare, jax_step, parser, preset
from jaxformer.runtime.xla_setup import FLAG

SIDES = {"default": f"{FLAG}=false", "deterministic": f"{FLAG}=true"}


def serve(name: str) -> None:
    """Compile, print the device, then print the seconds of a step for every line of input."""
    seconds = jax_step(preset(name))
    print(jax.devices()[0].device_kind, flush=True)
    for _ in sys.stdin:
        print(seconds(), flush=True)


def start(name: str, flag: str) -> subprocess.Popen[str]:
    """A process with this XLA flag that takes a step on request."""
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks.deterministic", "--preset", name, "--serve"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()},
    )


def ask(process: subprocess.Popen[str]) -> float:
    """The seconds of the next step."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return float(process.stdout.readline())


def main() -> None:
    """Measure and print."""
    flags = parser(__doc__, repetitions=100)
    flags.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    words = flags.parse_args()
    if words.serve:
        serve(words.preset)
        return
    processes = {side: start(words.preset, flag) for side, flag in SIDES.items()}
    devices = {process.stdout.readline().strip() for process in processes.values()}
    sides = {side: functools.partial(ask, process) for side, process in processes.items()}
    compare(words, sides, device=" and ".join(devices))
    for process in processes.values():
        process.communicate()


if __name__ == "__main__":
    main()
