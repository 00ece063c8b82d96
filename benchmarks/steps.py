"""Shared by the benchmarks of train steps: presets of `gpt_char`, timing, a table.

The presets have the vocabulary of tinyshakespeare, 65; tokens are random. The sides take turns, in
alternating order, so that a slow phase of the machine affects all of them. Compilation and the
first steps are not timed.
"""

import argparse
import dataclasses
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxformer.batch import Batch
from jaxformer.config import LanguageConfig, MeshConfig
from jaxformer.models.functional import abstract_model, num_parameters
from jaxformer.models.gpt import GPT
from jaxformer.sharding.mesh import make_mesh
from jaxformer.tasks.language_modeling import language_spec
from jaxformer.tasks.program import build
from train.gpt_char import PRESETS

VOCAB_SIZE = 65

Seconds = Callable[[], float]
"""Takes one step and returns how long it took."""


class Row(NamedTuple):
    """Seconds per step of one side."""

    side: str
    median: float
    fastest: float
    slowest: float


def preset(name: str) -> LanguageConfig:
    """A preset of `gpt_char` with its vocabulary."""
    config = PRESETS[name]
    model = dataclasses.replace(config.model, vocab_size=VOCAB_SIZE)
    return dataclasses.replace(config, model=model)


def random_tokens(config: LanguageConfig) -> np.ndarray:
    """(B, T + 1) random tokens, the same at every call."""
    shape = config.batch_size, config.model.context_length + 1
    return np.random.default_rng(0).integers(0, VOCAB_SIZE, shape, dtype=np.int32)


def timed(step: Callable[[], object]) -> Seconds:
    """A function that takes a step and returns its seconds, after three steps to warm up."""
    for _ in range(3):
        step()

    def seconds() -> float:
        start = time.perf_counter()
        step()
        return time.perf_counter() - start

    return seconds


def jax_step(config: LanguageConfig) -> Seconds:
    """A whole train step as a run takes it, on one device."""
    program = build(language_spec(config), make_mesh(MeshConfig(data=1), jax.devices()[:1]))
    tokens = random_tokens(config)
    batch = Batch(tokens[:, :-1], tokens[:, 1:], np.ones(tokens[:, 1:].shape, bool))
    batch = jax.device_put(batch, program.rows)
    state = program.fresh_state()

    def step() -> None:
        nonlocal state
        state, metrics = program.train_step(state, batch)
        jax.block_until_ready((state, metrics))

    return timed(step)


def parser(description: str, repetitions: int) -> argparse.ArgumentParser:
    """The flags of these benchmarks."""
    flags = argparse.ArgumentParser(description=description.partition("\n")[0])
    flags.add_argument("--preset", choices=tuple(PRESETS), default="cpu")
    flags.add_argument("--repetitions", type=int, default=repetitions, help="steps of each side")
    flags.add_argument("--json", type=Path, help="also write the table to this file")
    return flags


def compare(words: argparse.Namespace, sides: Mapping[str, Seconds], **about: Any) -> None:
    """Time the sides, print a table, write it to `--json`; ratios are to the first side."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for repetition in range(words.repetitions):
        names = list(sides)
        for name in reversed(names) if repetition % 2 else names:
            seconds[name].append(sides[name]())
    model = preset(words.preset).model
    about = {
        "python": platform.python_version(),
        "jax": jax.__version__,
        "cpus": os.cpu_count(),
        "dtype": model.dtype,
        "matmul_precision": "default",
        "preset": words.preset,
        "parameters": num_parameters(abstract_model(GPT, model)[1]),
        "repetitions": words.repetitions,
        **about,
    }
    rows = [Row(name, statistics.median(s), min(s), max(s)) for name, s in seconds.items()]
    print(*(f"{name} {value}" for name, value in about.items()), sep=", ")
    print(f"{'ms/step':20}{'median':>10}{'fastest':>10}{'slowest':>10}{'ratio':>10}")
    for row in rows:
        numbers = "".join(f"{1000 * number:10.2f}" for number in row[1:])
        print(f"{row.side:20}{numbers}{row.median / rows[0].median:10.3f}")
    if words.json:
        table = about | {"rows": [row._asdict() for row in rows]}
        words.json.write_text(json.dumps(table, indent=2) + "\n")
