"""What the guard against bad updates costs: seconds of a train step with it and without.

    python -m benchmarks.guard
    python -m benchmarks.guard --preset gpu --repetitions 60 --json guard.json

`guarded` is the step as every run takes it, which leaves out an update that is not finite;
`unguarded` the same with that choice taken out. The presets are those of `gpt_char`. Medians
over repetitions, with the fastest and the slowest, and as a ratio to the unguarded step.
"""

import jax

from benchmarks.steps import Seconds, compare, jax_step, parser, preset
from jaxformer.config import LanguageConfig
from jaxformer.training import step as guarded_step


def sides(config: LanguageConfig) -> dict[str, Seconds]:
    """The two steps that are compared."""
    guarded = jax_step(config)
    tree_where = guarded_step.tree_where
    guarded_step.tree_where = lambda condition, new, old: new
    try:
        return {"unguarded": jax_step(config), "guarded": guarded}
    finally:
        guarded_step.tree_where = tree_where


def main() -> None:
    """Measure and print."""
    words = parser(__doc__, repetitions=200).parse_args()
    compare(words, sides(preset(words.preset)), device=jax.devices()[0].device_kind)


if __name__ == "__main__":
    main()
