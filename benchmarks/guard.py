"""What watching over the losses costs: seconds of a train step with the guard and without.

    python -m benchmarks.guard
    python -m benchmarks.guard --preset gpu --repetitions 60 --json guard.json

`guarded` is the step as every run takes it, which leaves out an update that is not finite;
`unguarded` the same with that choice taken out; `spikes` skips spikes as well. The presets are
those of `train.gpt_char`. Medians over repetitions, with the fastest and the slowest, and as a
ratio to the unguarded step.
"""

import dataclasses

import jax

from benchmarks.steps import Seconds, compare, jax_step, parser, preset
from jaxformer.config import LanguageConfig, SpikeConfig
from jaxformer.training import step as guarded_step


def sides(config: LanguageConfig) -> dict[str, Seconds]:
    """The three steps that are compared."""
    skipping = dataclasses.replace(config, spikes=SpikeConfig(skip=True))
    guarded = {"guarded": jax_step(config), "spikes": jax_step(skipping)}
    tree_where = guarded_step.tree_where
    guarded_step.tree_where = lambda sound, new, old: new
    try:
        return {"unguarded": jax_step(config), **guarded}
    finally:
        guarded_step.tree_where = tree_where


def main() -> None:
    """Measure and print."""
    words = parser(__doc__, repetitions=200).parse_args()
    compare(words, sides(preset(words.preset)), device=jax.devices()[0].device_kind)


if __name__ == "__main__":
    main()
