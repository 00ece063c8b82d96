"""What `--deterministic` costs: train steps with XLA's flag and without.

python -m benchmarks.deterministic
python -m benchmarks.deterministic --case "6 x 384" --repetitions 60
"""

import os
import sys

from benchmarks.comparison import Benchmark, Entrant, choose, parser, same_loss
from benchmarks.train_step import CASES, SIDES, settings
from jaxformer.runtime.xla_setup import FLAG


def main() -> int:
    """Measure and print."""
    flags = parser(__doc__, repetitions=60)
    choose(flags, "case", CASES)
    words = flags.parse_args()
    benchmark = Benchmark("deterministic", words)
    given = os.environ.get("XLA_FLAGS", "")
    for name in words.case:
        told = settings(CASES[name])
        benchmark.compare(
            name,
            [
                Entrant(
                    side, f"{SIDES}:jaxformer", told, {"XLA_FLAGS": f"{given} {FLAG}={on}".strip()}
                )
                for side, on in (("default", "false"), ("deterministic", "true"))
            ],
            same_loss(CASES[name].config.dtype),
        )
    return benchmark.end()


if __name__ == "__main__":
    sys.exit(main())
