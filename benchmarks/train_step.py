"""Seconds of a whole train step, jaxformer's beside its PyTorch twin's, on the same batch.

    python -m benchmarks.train_step
    python -m benchmarks.train_step --preset gpu --json train_step.json

The presets are those of `train.gpt_char` with a vocabulary of 65. The two take turns, so that a
slow spell of the machine meets both; compilation and first steps are left out. Medians over
repetitions, with the fastest and the slowest. Needs PyTorch.
"""

import argparse
import dataclasses
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import torch

from jaxformer.batch import Batch
from jaxformer.config import LanguageConfig, MeshConfig
from jaxformer.run.language import language_method
from jaxformer.run.program import build
from jaxformer.sharding.mesh import make_mesh
from torchref.batch import Batch as TwinBatch
from torchref.config import GPTConfig as TwinConfig
from torchref.config import OptimizerConfig as TwinOptimizerConfig
from torchref.layers.dropout import random_keep
from torchref.models.gpt import GPT as Twin
from torchref.training.objectives import next_token
from torchref.training.optimizer import adamw
from torchref.training.schedule import warmup_cosine
from torchref.training.step import train_step
from train.gpt_char import PRESETS

VOCAB_SIZE = 65


def jax_step(config: LanguageConfig, tokens: np.ndarray) -> Callable[[], float]:
    """A function that takes one step and returns its loss."""
    program = build(language_method(config), make_mesh(MeshConfig(data=1), jax.devices()[:1]))
    batch = Batch(tokens[:, :-1], tokens[:, 1:], np.ones(tokens[:, 1:].shape, bool))
    batch = jax.device_put(batch, program.rows)
    state = program.fresh_state()

    def step() -> float:
        nonlocal state
        state, metrics = program.train_step(state, batch)
        return float(metrics.loss)

    return step


def torch_step(config: LanguageConfig, tokens: np.ndarray) -> Callable[[], float]:
    """The same of the twin, on the CPU."""
    model = Twin(TwinConfig(**dataclasses.asdict(config.model)))
    settings = TwinOptimizerConfig(**dataclasses.asdict(config.optimizer))
    optimizer = adamw(model, settings)
    rate = warmup_cosine(settings, config.steps)
    whole = torch.as_tensor(tokens, dtype=torch.long)
    batch = TwinBatch(whole[:, :-1], whole[:, 1:], torch.ones(whole[:, 1:].shape, dtype=torch.bool))
    keep = random_keep(torch.Generator().manual_seed(0)) if config.model.dropout_rate else None

    def step() -> float:
        clip = settings.clip_norm
        return train_step(model, next_token, optimizer, rate, clip, 0, [batch], [keep]).loss

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=tuple(PRESETS), default="cpu")
    parser.add_argument("--repetitions", type=int, default=60)
    parser.add_argument("--json", type=Path, help="also write the table to this file")
    arguments = parser.parse_args()
    config = PRESETS[arguments.preset]
    model = dataclasses.replace(config.model, vocab_size=VOCAB_SIZE)
    config = dataclasses.replace(config, model=model)
    shape = config.batch_size, model.context_length + 1
    tokens = np.random.default_rng(0).integers(0, VOCAB_SIZE, shape, dtype=np.int32)

    steps = {"jaxformer, jit": jax_step(config, tokens), "twin, eager": torch_step(config, tokens)}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        for _ in range(3):
            step()
    for _ in range(arguments.repetitions):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - start)

    about = {
        "python": platform.python_version(),
        "jax": jax.__version__,
        "torch": torch.__version__,
        "device": jax.devices()[0].device_kind,
        "cpus": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "dtype": model.dtype,
        "matmul_precision": "jax default, torch default",
        "preset": arguments.preset,
        "parameters": model.num_parameters(),
        "repetitions": arguments.repetitions,
    }
    print(*(f"{name} {value}" for name, value in about.items()), sep=", ")
    print(f"{'milliseconds a step':22}{'median':>10}{'fastest':>10}{'slowest':>10}")
    rows = [
        {
            "program": name,
            "median": statistics.median(times),
            "fastest": min(times),
            "slowest": max(times),
        }
        for name, times in seconds.items()
    ]
    for row in rows:
        numbers = (1000 * row[key] for key in ("median", "fastest", "slowest"))
        print(f"{row['program']:22}" + "".join(f"{number:10.1f}" for number in numbers))
    if arguments.json:
        arguments.json.write_text(json.dumps({**about, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
