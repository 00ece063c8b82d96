"""The smallest run worth killing: a GPT of one layer on a text of its own."""

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxformer import checkpoint
from jaxformer.config import (
    CheckpointConfig,
    CopyConfig,
    CopyTranslationConfig,
    DataConfig,
    GPTConfig,
    LanguageConfig,
    NoamConfig,
    RunConfig,
    TransformerConfig,
)
from jaxformer.data.batches import training_iterator
from jaxformer.monitor.metrics import read_metrics
from jaxformer.run import loop
from jaxformer.sharding.mesh import make_mesh
from jaxformer.tasks import language_modeling as language
from jaxformer.tasks.kinds import kind_of
from jaxformer.tasks.program import Program, build
from jaxformer.tasks.task import Task

TEXT = "".join(f"{i} bottles of beer on the wall, {i} bottles of beer.\n" for i in range(100))
BAD, GOOD = 0, 1
"""Tokens that `spoil` lets bad and good batches begin with."""


def tiny_model() -> GPTConfig:
    """A GPT of one layer."""
    return GPTConfig(
        vocab_size=0,
        context_length=7,
        width=8,
        num_heads=2,
        mlp_width=8,
        num_layers=1,
        dropout_rate=0.1,
    )


def tiny_config(directory: Path, **changes: Any) -> LanguageConfig:
    """A run on a text that is written to the directory; every step is validated and saved."""
    text = directory / "text.txt"
    text.write_text(TEXT, encoding="utf-8")
    config = LanguageConfig(
        model=tiny_model(),
        data=DataConfig(path=text, tokenizer="characters"),
        checkpoint=CheckpointConfig(every=1, keep=3),
        steps=12,
        batch_size=8,
        eval_every=100,
        eval_tokens=64,
    )
    return dataclasses.replace(config, **changes)


PAIRS = CopyTranslationConfig(
    model=TransformerConfig(
        vocab_size=0,
        context_length=8,
        width=8,
        num_heads=2,
        mlp_width=8,
        num_layers=1,
        dropout_rate=0.1,
    ),
    data=CopyConfig(num_symbols=5, max_length=5, num_pairs=97, num_val_pairs=13),
    optimizer=NoamConfig(warmup_steps=2),
    batch_size=11,
)
"""A run of an encoder-decoder of one block on strings of at most five letters."""


def prepared(config: RunConfig) -> tuple[Task, Program]:
    """What a run of this configuration does, on one device."""
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    task = kind_of(config).task(config, mesh)
    return task, build(task.spec, mesh)


def state_of(program: Program, run_dir: Path, step: int) -> Any:
    """The whole state of a checkpoint."""
    wanted = checkpoint.split(program.state)
    items, _ = checkpoint.restore(run_dir / "checkpoints", wanted, step)
    return checkpoint.join(items)


def losses(run_dir: Path) -> list[tuple]:
    """Step, split, loss and gradient norm of each line of the metrics."""
    rows = read_metrics(run_dir / "metrics.jsonl")
    return [(row["step"], row["split"], row["loss"], row.get("grad_norm")) for row in rows]


def one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let runs use one of the simulated devices."""
    monkeypatch.setattr(loop, "make_mesh", lambda config: make_mesh(config, jax.devices()[:1]))


def flags(config: LanguageConfig, run_dir: Path) -> list[str]:
    """The words after `jaxformer train gpt_char` that make a `tiny_config`."""
    model = config.model
    return [
        *("--run-dir", str(run_dir), "--data.path", str(config.data.path)),
        *("--steps", str(config.steps), "--batch-size", str(config.batch_size)),
        *("--eval-every", str(config.eval_every), "--eval-tokens", str(config.eval_tokens)),
        *("--checkpoint.every", str(config.checkpoint.every)),
        *("--checkpoint.keep", str(config.checkpoint.keep)),
        *("--model.context-length", str(model.context_length)),
        *("--model.width", str(model.width), "--model.num-heads", str(model.num_heads)),
        *("--model.mlp-width", str(model.mlp_width), "--model.num-layers", str(model.num_layers)),
        *("--model.dropout-rate", str(model.dropout_rate)),
    ]


def train_losses(run_dir: Path) -> list[tuple[int, float]]:
    """Step and training loss of every line of metrics."""
    rows = read_metrics(run_dir / "metrics.jsonl")
    return [(row["step"], row["loss"]) for row in rows if row["split"] == "train"]


def spoil(monkeypatch: pytest.MonkeyPatch, steps: set[int], fault: Any) -> None:
    """Let `fault` change the loss of these steps' batches, counted from 1, and of no other."""
    objective = language.next_token

    def spoilt(model: Any, batch: Any, key: Any) -> Any:
        total, count = objective(model, batch, key)
        bad = (batch.inputs[:, 0] == BAD).any()
        return fault(total, bad), count

    def iterator(batches: Any, start: int) -> Iterator[Any]:
        stream = training_iterator(batches, start)
        for step, batch in zip(itertools.count(start + 1), stream, strict=False):
            inputs = np.array(batch.inputs)
            inputs[:, 0] = BAD if step in steps else GOOD
            yield batch._replace(inputs=inputs)

    monkeypatch.setattr(language, "next_token", spoilt)
    monkeypatch.setattr(loop, "training_iterator", iterator)


def whole_state(config: LanguageConfig, run_dir: Path, step: int | None = None) -> Any:
    """The state of a run's newest checkpoint, or of the given step, on one device."""
    characters = set(config.data.path.read_text(encoding="utf-8")) if config.data.path else ()
    model = dataclasses.replace(config.model, vocab_size=len(characters))
    spec = language.language_spec(dataclasses.replace(config, model=model))
    program = build(spec, make_mesh(config.mesh, jax.devices()[:1]))
    items, _ = checkpoint.restore(run_dir / "checkpoints", checkpoint.split(program.state), step)
    return checkpoint.join(items)
