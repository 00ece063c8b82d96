"""What watching over the losses costs: seconds of a train step with the guard and without.

    python -m benchmarks.guard
    python -m benchmarks.guard --preset gpu --repetitions 60

`guarded` is the step as every run takes it, which leaves out an update that is not finite;
`unguarded` the same with that choice taken out; `spikes` skips spikes as well. The presets are
those of `train.gpt_char` with a vocabulary of 65. The three take turns, so that a slow spell of the
machine meets all; compilation and first steps are left out. Medians over repetitions, with the
fastest and the slowest.
"""

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable

import jax
import numpy as np

from jaxformer.batch import Batch
from jaxformer.config import LanguageConfig, MeshConfig, SpikeConfig
from jaxformer.run.language import language_method
from jaxformer.run.program import build
from jaxformer.sharding.mesh import make_mesh
from jaxformer.training import step as guarded_step
from train.gpt_char import PRESETS

VOCAB_SIZE = 65


def compiled(config: LanguageConfig) -> Callable[[], None]:
    """A function that takes one step, compiled by a first few."""
    program = build(language_method(config), make_mesh(MeshConfig(data=1), jax.devices()[:1]))
    shape = config.batch_size, config.model.context_length + 1
    tokens = np.random.default_rng(0).integers(0, VOCAB_SIZE, shape)
    batch = Batch(tokens[:, :-1], tokens[:, 1:], np.ones(tokens[:, 1:].shape, bool))
    batch = jax.device_put(batch, program.rows)
    state = program.fresh_state()

    def step() -> None:
        nonlocal state
        state, metrics = program.train_step(state, batch)
        jax.block_until_ready((state, metrics))

    for _ in range(3):
        step()
    return step


def compiled_sides(config: LanguageConfig) -> dict[str, Callable[[], None]]:
    """The three steps that are compared."""
    skipping = dataclasses.replace(config, spikes=SpikeConfig(skip=True))
    sides = {"guarded": compiled(config), "spikes": compiled(skipping)}
    keep_if = guarded_step.keep_if
    guarded_step.keep_if = lambda sound, new, old: new
    try:
        return {"unguarded": compiled(config), **sides}
    finally:
        guarded_step.keep_if = keep_if


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--preset", choices=tuple(PRESETS), default="cpu")
    parser.add_argument("--repetitions", type=int, default=200)
    words = parser.parse_args()
    config = PRESETS[words.preset]
    config = dataclasses.replace(
        config, model=dataclasses.replace(config.model, vocab_size=VOCAB_SIZE)
    )
    sides = compiled_sides(config)
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for repetition in range(words.repetitions):
        names = list(sides)
        for name in names if repetition % 2 else reversed(names):
            began = time.perf_counter()
            sides[name]()
            seconds[name].append(time.perf_counter() - began)
    print(
        f"preset {words.preset} on {jax.devices()[0].device_kind}, jax {jax.__version__}, "
        f"{config.model.dtype}, {words.repetitions} steps a side"
    )
    plain = statistics.median(seconds["unguarded"])
    for name, values in seconds.items():
        median, low, high = (f(values) * 1e3 for f in (statistics.median, min, max))
        ratio = statistics.median(values) / plain
        print(f"{name:10} {median:8.2f} ms ({low:.2f} to {high:.2f}), {ratio:.3f} of unguarded")


if __name__ == "__main__":
    main()
