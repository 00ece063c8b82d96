"""Tokens per second of a small GPT, sentences per second of a Transformer of the same size.

    python -m benchmarks.decoding
    python -m benchmarks.decoding --batch-size 8 --context-length 512 --json decoding.json

The GPT decodes greedily, with and without the key-value cache. Both ways continue the same prompts
until the context is full, so the context is never truncated; without a cache every token reads the
whole text, padded to its bucket. The Transformer translates sentences of 8 to 16 tokens by greedy
decoding and by a beam of 4, to at most 16 tokens more; random weights seldom end a sentence early,
so nearly all translations have that length. Otherwise the weights do not affect the time.
Compilation is not timed. Reports the median, slowest and fastest of the repetitions.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import flax
import jax
import numpy as np

from jaxformer.batch import SpecialTokens
from jaxformer.config import BeamConfig, GPTConfig, SamplingConfig, TransformerConfig
from jaxformer.decoding.beam import translate
from jaxformer.decoding.generate import generate, generate_uncached
from jaxformer.models.functional import abstract_model, init_params
from jaxformer.models.gpt import GPT
from jaxformer.models.transformer import Transformer

PROMPT_LENGTH = 16
PRECISION = "highest"  # of float32 products; GPUs would use TF32 otherwise
WAYS: dict[str, Callable] = {"cached": generate, "uncached": generate_uncached}
BEAMS = {
    "greedy": BeamConfig(beam=1, length_penalty=0.0, extra_length=16),
    "beam of 4": BeamConfig(beam=4, extra_length=16),
}


class Rate(NamedTuple):
    """Tokens or sentences per second of one way to decode, over all rows."""

    way: str
    median: float
    slowest: float
    fastest: float


def measure(config: GPTConfig, batch_size: int, repetitions: int) -> list[Rate]:
    """One row per way."""
    graphdef, _ = abstract_model(GPT, config)
    params = init_params(GPT, config, jax.random.key(0))
    prompts = np.random.default_rng(0).integers(0, config.vocab_size, (batch_size, PROMPT_LENGTH))
    steps = config.context_length - PROMPT_LENGTH
    greedy = SamplingConfig(temperature=0)

    def decode(way: str) -> np.ndarray:
        tokens = WAYS[way](graphdef, params, config, prompts, max_new_tokens=steps, sampling=greedy)
        return np.stack(list(tokens))

    return rates(decode, WAYS, batch_size * steps, repetitions)


def measure_beams(config: TransformerConfig, batch_size: int, repetitions: int) -> list[Rate]:
    """One row per beam."""
    graphdef, _ = abstract_model(Transformer, config)
    params = init_params(Transformer, config, jax.random.key(0))
    V, rng = config.vocab_size, np.random.default_rng(0)
    specials = SpecialTokens(padding=V - 3, start=V - 2, end=V - 1)
    sources = [rng.integers(0, V - 3, length) for length in rng.integers(8, 17, batch_size)]

    def decode(way: str) -> object:
        return translate(graphdef, params, config, sources, specials, BEAMS[way])

    return rates(decode, BEAMS, batch_size, repetitions)


def rates(
    decode: Callable[[str], object], ways: Iterable[str], count: int, repetitions: int
) -> list[Rate]:
    """`count` per second of each way, in turns, so that a slow phase affects all ways."""
    for way in ways:  # compiles
        decode(way)
    measured: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(repetitions):
        for way in ways:
            start = time.perf_counter()
            decode(way)
            measured[way].append(count / (time.perf_counter() - start))
    return [Rate(way, statistics.median(r), min(r), max(r)) for way, r in measured.items()]


def show(rows: list[Rate], unit: str) -> None:
    """Print a table."""
    print(f"{unit + '/s':20}{'median':>10}{'slowest':>10}{'fastest':>10}")
    for row in rows:
        print(f"{row.way:20}{row.median:10.0f}{row.slowest:10.0f}{row.fastest:10.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--sentences", type=int, default=32, help="of the Transformer's batch")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--num-layers", type=int, default=4)
    parser.add_argument("--context-length", type=int, default=256)
    parser.add_argument("--vocab-size", type=int, default=4096)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--json", type=Path, help="also write the table to this file")
    arguments = parser.parse_args()
    sizes = {
        "vocab_size": arguments.vocab_size,
        "context_length": arguments.context_length,
        "width": arguments.width,
        "num_heads": 4,
        "mlp_width": 4 * arguments.width,
        "num_layers": arguments.num_layers,
        "dtype": arguments.dtype,
    }
    config = GPTConfig(**sizes)
    transformer = TransformerConfig(**sizes, init_std=arguments.width**-0.5)
    with jax.default_matmul_precision(PRECISION):
        rows = measure(config, arguments.batch_size, arguments.repetitions)
        beams = measure_beams(transformer, arguments.sentences, arguments.repetitions)
    about = {
        "python": platform.python_version(),
        "jax": jax.__version__,
        "flax": flax.__version__,
        "device": jax.devices()[0].device_kind,
        "cpus": os.cpu_count(),
        "dtype": config.dtype,
        "matmul_precision": PRECISION,
        "batch_size": arguments.batch_size,
        "parameters": config.num_parameters(),
        "context_length": config.context_length,
        "sentences": arguments.sentences,
        "transformer_parameters": transformer.num_parameters(),
    }
    print(*(f"{name} {value}" for name, value in about.items()), sep=", ")
    show(rows, "tokens")
    print(f"cached / uncached: {rows[0].median / rows[1].median:.1f}")
    show(beams, "sentences")
    if arguments.json:
        tables = {"rows": rows, "beams": beams}
        table = about | {name: [r._asdict() for r in part] for name, part in tables.items()}
        arguments.json.write_text(json.dumps(table, indent=2) + "\n")


if __name__ == "__main__":
    main()
