"""How the time, memory and compilation of a train step grow with batch, length, width and depth.

    python -m benchmarks.growth
    python -m benchmarks.growth --along length --repetitions 9

jaxformer beside transformers' GPT-2, eager, from 4 layers of width 128, B 12, T 64, one size at a
time. `python -m benchmarks.performance` draws the curves.
"""

import dataclasses
import sys

from benchmarks import machine
from benchmarks.comparison import Benchmark, choose, parser, same_loss
from benchmarks.train_step import CASES, Case, entrants, settings
from jaxformer.config import ModelConfig

SIDES = ("jaxformer", "transformers' GPT-2, eager")
ALONG: dict[str, tuple[int, ...]] = {
    "batch": (1, 4, 16, 64),
    "length": (64, 128, 256, 512, 1024),
    "width": (64, 128, 256, 512, 1024),
    "depth": (2, 4, 8, 16, 32),
}
"""The values of each size; the others are those of the base."""


def sized(along: str, value: int) -> Case:
    """The base with another size."""
    base = CASES["char-cpu"]._replace(steps=1)
    config: ModelConfig = base.config
    match along:
        case "batch":
            return base._replace(batch_size=value)
        case "length":
            # The same number of tokens, so that what grows is attention.
            return base._replace(length=value, batch_size=1024 // value)
        case "width":
            heads = {"num_heads": value // 32, "mlp_width": 4 * value}
            return base._replace(config=dataclasses.replace(config, width=value, **heads))
        case _:
            return base._replace(config=dataclasses.replace(config, num_layers=value))


def main() -> int:
    """Measure and print."""
    flags = parser(__doc__, repetitions=5)
    choose(flags, "along", ALONG)
    words = flags.parse_args()
    benchmark = Benchmark("growth", words)
    machine.measure(benchmark)
    for along in words.along:
        for value in ALONG[along]:
            case = sized(along, value)
            benchmark.compare(
                f"{along} {value}, {case.config.dtype}",
                [entrant for entrant in entrants(case) if entrant.name in SIDES],
                same_loss(case.config.dtype),
                along=along,
                value=value,
                settings=settings(case),
                per_second={"all": {"tokens": case.batch_size * case.length}},
            )
    return benchmark.end()


if __name__ == "__main__":
    sys.exit(main())
