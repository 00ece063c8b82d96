"""What `--deterministic` costs: seconds of a train step with it and without, taken in turns.

    python -m benchmarks.deterministic
    python -m benchmarks.deterministic --preset gpu --repetitions 50

The presets are those of `train.gpt_char` with a vocabulary of 65. XLA's flags hold for a whole
process, so each side is a process of its own that takes a step when asked; a slow spell of the
machine meets both. Medians over repetitions, with the fastest and the slowest.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator

from jaxformer.run.deterministic import FLAG
from train.gpt_char import PRESETS

SIDES = {"default": f"{FLAG}=false", "deterministic": f"{FLAG}=true"}


def serve(preset: str) -> Iterator[float | str]:
    """The device, once compiled; then the seconds of a step for every line that is read."""
    import dataclasses

    import jax
    import numpy as np

    from jaxformer.batch import Batch
    from jaxformer.config import MeshConfig
    from jaxformer.run.language import language_method
    from jaxformer.run.program import build
    from jaxformer.sharding.mesh import make_mesh

    config = PRESETS[preset]
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, vocab_size=65))
    program = build(language_method(config), make_mesh(MeshConfig(data=1), jax.devices()[:1]))
    shape = config.batch_size, config.model.context_length + 1
    tokens = np.random.default_rng(0).integers(0, 65, shape)
    batch = Batch(tokens[:, :-1], tokens[:, 1:], np.ones(tokens[:, 1:].shape, bool))
    batch = jax.device_put(batch, program.rows)
    state = program.fresh_state()
    for _ in range(3):
        state, _ = program.train_step(state, batch)
    jax.block_until_ready(state)
    yield jax.devices()[0].device_kind
    for _ in sys.stdin:
        began = time.perf_counter()
        state, _ = program.train_step(state, batch)
        jax.block_until_ready(state)
        yield time.perf_counter() - began


def start(preset: str, flag: str) -> subprocess.Popen[str]:
    """A process that steps when asked, with this flag of XLA's."""
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks.deterministic", "--preset", preset, "--serve"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()},
    )


def ask(process: subprocess.Popen[str]) -> float:
    """The seconds of one more step."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return float(json.loads(process.stdout.readline()))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--preset", choices=PRESETS, default="cpu")
    parser.add_argument("--repetitions", type=int, default=100)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.serve:
        for answer in serve(words.preset):
            print(json.dumps(answer), flush=True)
        return
    sides = {name: start(words.preset, flag) for name, flag in SIDES.items()}
    devices = {json.loads(process.stdout.readline()) for process in sides.values()}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(words.repetitions):
        for name, process in sides.items():
            seconds[name].append(ask(process))
    for process in sides.values():
        process.communicate()
    print(f"preset {words.preset} on {' and '.join(devices)}, {words.repetitions} steps a side")
    for name, values in seconds.items():
        median, low, high = (f(values) * 1e3 for f in (statistics.median, min, max))
        print(f"{name:14} {median:8.2f} ms ({low:.2f} to {high:.2f})")
    ratio = statistics.median(seconds["deterministic"]) / statistics.median(seconds["default"])
    print(f"deterministic / default = {ratio:.3f}")


if __name__ == "__main__":
    main()
