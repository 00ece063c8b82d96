"""How the time, memory and compilation of a train step grow with batch, length, width and depth.

    python -m benchmarks.growth
    python -m benchmarks.growth --along length --repetitions 9

jaxformer beside transformers' GPT-2, eager, from 4 layers of width 128, B 12, T 64, one size at a
time; and along `attention` the forms of attention alone, forwards and backwards, over its length.
`python -m benchmarks.performance` draws the curves.
"""

import dataclasses
import sys

from benchmarks import machine
from benchmarks.comparison import Benchmark, Entrant, choose, parser, same_loss
from benchmarks.side import Done, Work
from benchmarks.train_step import CASES, Case, entrants, settings
from jaxformer.config import ModelConfig

SIDES = ("jaxformer", "transformers' GPT-2, eager")
ALONG: dict[str, tuple[int, ...]] = {
    "batch": (1, 4, 16, 64),
    "length": (64, 128, 256, 512, 1024),
    "width": (64, 128, 256, 512, 1024),
    "depth": (2, 4, 8, 16, 32),
    "attention": (64, 128, 256, 512, 1024, 2048, 4096),
}
"""The values of each size; the others are those of the base."""
FORMS = ("plain", "query_blocks", "blockwise")
"""Of attention, on CPUs."""
HEADS, HEAD_WIDTH, TOKENS = 4, 32, 4096
"""Of attention alone: those of the base, and as many tokens at each length."""


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


def causal_attention(form: str, length: int) -> Work:
    """Causal attention of random queries, keys and values, and its gradients, in float32."""
    import jax

    from jaxformer.layers.attention import attention, query_blocks_attention
    from jaxformer.layers.blockwise_attention import blockwise_attention
    from jaxformer.layers.masks import CAUSAL

    shape = TOKENS // length, length, HEADS, HEAD_WIDTH
    function = {
        "plain": lambda *arrays: attention(*arrays)[0],
        "query_blocks": query_blocks_attention,
        "blockwise": blockwise_attention,
    }[form]

    @jax.jit
    def loss_and_gradients(q_BLHK: jax.Array, k_BMHK: jax.Array, v_BMHK: jax.Array):
        def loss(*arrays: jax.Array) -> jax.Array:
            return (function(*arrays, CAUSAL) ** 2).sum()

        return jax.value_and_grad(loss, argnums=(0, 1, 2))(q_BLHK, k_BMHK, v_BMHK)

    arrays = jax.random.normal(jax.random.key(0), (3, *shape))
    return lambda: Done([float(jax.block_until_ready(loss_and_gradients(*arrays))[0])])


def measure_step(benchmark: Benchmark, along: str, value: int) -> None:
    """A train step with one size of the base changed."""
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


def measure_attention(benchmark: Benchmark, length: int) -> None:
    """The forms of attention at one length."""
    told = [{"form": form, "length": length} for form in FORMS]
    benchmark.compare(
        f"attention over {length}, float32",
        [Entrant(each["form"], "benchmarks.growth:causal_attention", each) for each in told],
        same_loss("float32"),
        along="attention",
        value=length,
        per_second={"all": {"tokens": TOKENS}},
    )


def main() -> int:
    """Measure and print."""
    flags = parser(__doc__, repetitions=5)
    choose(flags, "along", ALONG)
    words = flags.parse_args()
    benchmark = Benchmark("growth", words)
    machine.measure(benchmark)
    for along in words.along:
        for value in ALONG[along]:
            if along == "attention":
                measure_attention(benchmark, value)
            else:
                measure_step(benchmark, along, value)
    return benchmark.end()


if __name__ == "__main__":
    sys.exit(main())
