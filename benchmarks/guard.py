"""What the guard against bad updates costs: train steps with it and without.

    python -m benchmarks.guard
    python -m benchmarks.guard --case "6 x 384" --repetitions 60

With it is the step as every run takes it, which leaves out an update that is not finite; without it
that choice is taken out.
"""

import sys
from typing import Any

from benchmarks.comparison import Benchmark, Entrant, choose, parser, same_loss
from benchmarks.side import Work
from benchmarks.train_step import CASES, SIDES, settings


def unguarded(**told: Any) -> Work:
    """The train step without the choice between old and new state."""
    from benchmarks.training_sides import jaxformer
    from jaxformer.training import step

    step.tree_where = lambda condition, new, old: new
    return jaxformer(**told)


def main() -> int:
    """Measure and print."""
    flags = parser(__doc__, repetitions=60)
    choose(flags, "case", CASES)
    words = flags.parse_args()
    benchmark = Benchmark("guard", words)
    for name in words.case:
        told = settings(CASES[name])
        benchmark.compare(
            name,
            [
                Entrant("without", "benchmarks.guard:unguarded", told),
                Entrant("with the guard", f"{SIDES}:jaxformer", told),
            ],
            same_loss(CASES[name].config.dtype),
        )
    return benchmark.end()


if __name__ == "__main__":
    sys.exit(main())
