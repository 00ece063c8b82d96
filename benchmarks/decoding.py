"""Tokens a second of a small GPT's greedy decoding, with the key-value cache and without.

    python -m benchmarks.decoding
    python -m benchmarks.decoding --batch-size 8 --context-length 512 --json decoding.json

Both ways continue the same prompts until the context is full, so that nothing slides; the way
without a cache reads the whole text, padded to its bucket, for each token. Weights are random: they
do not change the time. Compilation is left out. Medians over repetitions, with the slowest and the
fastest.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import flax
import jax
import numpy as np

from jaxformer.config import GPTConfig, SamplingConfig
from jaxformer.decoding.generate import generate, generate_uncached
from jaxformer.models.gpt import GPT
from jaxformer.models.pure import abstract_model, init_params

PROMPT_LENGTH = 16
PRECISION = "highest"  # of float32 products; GPUs would take TF32 otherwise
WAYS: dict[str, Callable] = {"cached": generate, "uncached": generate_uncached}


class Rate(NamedTuple):
    """Tokens a second of one way to decode, over all rows."""

    way: str
    median: float
    slowest: float
    fastest: float


def measure(config: GPTConfig, batch_size: int, repetitions: int) -> list[Rate]:
    """One row a way; the ways take turns, so that a slow spell of the machine meets both."""
    graph, _ = abstract_model(GPT, config)
    params = init_params(GPT, config, jax.random.key(0))
    prompts = np.random.default_rng(0).integers(0, config.vocab_size, (batch_size, PROMPT_LENGTH))
    steps = config.context_length - PROMPT_LENGTH
    greedy = SamplingConfig(temperature=0)

    def decode(way: str) -> np.ndarray:
        tokens = WAYS[way](graph, params, config, prompts, max_new_tokens=steps, sampling=greedy)
        return np.stack(list(tokens))

    for way in WAYS:  # compiles
        decode(way)
    rates: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(repetitions):
        for way in WAYS:
            start = time.perf_counter()
            decode(way)
            rates[way].append(batch_size * steps / (time.perf_counter() - start))
    return [Rate(way, statistics.median(r), min(r), max(r)) for way, r in rates.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--num-layers", type=int, default=4)
    parser.add_argument("--context-length", type=int, default=256)
    parser.add_argument("--vocab-size", type=int, default=4096)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--json", type=Path, help="also write the table to this file")
    arguments = parser.parse_args()
    config = GPTConfig(
        vocab_size=arguments.vocab_size,
        context_length=arguments.context_length,
        width=arguments.width,
        num_heads=4,
        mlp_width=4 * arguments.width,
        num_layers=arguments.num_layers,
        dtype=arguments.dtype,
    )
    with jax.default_matmul_precision(PRECISION):
        rows = measure(config, arguments.batch_size, arguments.repetitions)
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
    }
    print(*(f"{name} {value}" for name, value in about.items()), sep=", ")
    print(f"{'tokens a second':20}{'median':>10}{'slowest':>10}{'fastest':>10}")
    for row in rows:
        print(f"{row.way:20}{row.median:10.0f}{row.slowest:10.0f}{row.fastest:10.0f}")
    print(f"cached / uncached: {rows[0].median / rows[1].median:.1f}")
    if arguments.json:
        table = {**about, "rows": [row._asdict() for row in rows]}
        arguments.json.write_text(json.dumps(table, indent=2) + "\n")


if __name__ == "__main__":
    main()
