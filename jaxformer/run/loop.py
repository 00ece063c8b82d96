"""A training run, chapter by chapter: build, restore, step, log, evaluate, save.

The train step is one jitted function of a state that lives on a mesh and is donated to it. Dropout,
the order of the data and the initial weights follow from the seed and the step alone, so a run that
is stopped and resumed is the same run to the last bit.
"""

import contextlib
import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, SingleDeviceSharding
from jaxtyping import PyTree

from jaxformer import checkpoint
from jaxformer.batch import Batch
from jaxformer.checkpoint import CheckpointWriter
from jaxformer.config import LanguageConfig, RunOptions
from jaxformer.data.batches import TrainingBatches, training_iterator
from jaxformer.data.corpus import PreparedData, prepare
from jaxformer.errors import UserError
from jaxformer.models.gpt import GPT
from jaxformer.models.pure import abstract_model, init_params
from jaxformer.run import directory
from jaxformer.run.config_io import config_from_json, config_to_json, load_config
from jaxformer.run.evaluate import Evaluation, evaluate
from jaxformer.run.host_memory import keep_freed_memory
from jaxformer.run.metrics import MetricsWriter, read_metrics
from jaxformer.run.plots import draw_curves
from jaxformer.run.progress import Progress
from jaxformer.run.signals import Interrupt
from jaxformer.run.steplog import StepLog, product_type
from jaxformer.sharding.mesh import batch_sharding, check_batch_size, make_mesh
from jaxformer.sharding.rules import state_shardings
from jaxformer.training.objectives import next_token
from jaxformer.training.optimizer import adamw
from jaxformer.training.schedule import warmup_cosine
from jaxformer.training.step import (
    TrainState,
    init_state,
    make_eval_step,
    make_train_step,
)


@dataclasses.dataclass(frozen=True)
class Program:
    """A configuration made into functions and places on a mesh."""

    mesh: Mesh
    rows: NamedSharding
    """Where a batch lives."""
    state: PyTree
    """Shape, type and place of every leaf of the train state."""
    fresh_state: Callable[[], TrainState]
    train_step: Any
    """A jitted `jaxformer.training.step.TrainStep` that takes over its state's memory."""
    eval_step: Callable[[PyTree, Batch], Any]
    dropout_key: np.ndarray
    """The raw key of the run's dropout."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    config: LanguageConfig
    exit_status: int
    """0, or 128 + the signal that ended it early."""
    step: int
    """Optimizer steps done."""
    evaluation: Evaluation | None
    """The validation of the last step, if it was one to validate at."""
    data: PreparedData


def build(config: LanguageConfig, mesh: Mesh) -> Program:
    """Compile nothing yet, allocate nothing yet: functions, shapes and places."""
    init_key, dropout_key = jax.random.split(jax.random.key(config.seed))
    graph, _ = abstract_model(GPT, config.model)
    optimizer = adamw(config.optimizer, config.steps)

    def draw() -> PyTree:
        return init_params(GPT, config.model, init_key)

    def begin(params: PyTree) -> TrainState:
        return init_state(params, optimizer)

    shapes = jax.eval_shape(lambda: begin(draw()))
    places = state_shardings(shapes, mesh)
    rows = batch_sharding(mesh)

    def fresh_state() -> TrainState:
        # Drawn by one device and then divided: how a draw is cut decides its last bits.
        params = jax.jit(draw, out_shardings=SingleDeviceSharding(mesh.devices.flat[0]))()
        params = jax.device_put(params, places.params)
        return jax.jit(begin, out_shardings=places)(params)

    dropout = dropout_key if config.model.dropout_rate > 0 else None
    return Program(
        mesh=mesh,
        rows=rows,
        state=jax.tree.map(_place, shapes, places),
        fresh_state=fresh_state,
        train_step=jax.jit(
            make_train_step(graph, next_token, optimizer, dropout, config.accumulation),
            in_shardings=(places, rows),
            out_shardings=(places, None),
            donate_argnums=0,
        ),
        eval_step=jax.jit(make_eval_step(graph, next_token), in_shardings=(places.params, rows)),
        dropout_key=np.asarray(jax.random.key_data(dropout_key)),
    )


def train(config: LanguageConfig, options: RunOptions) -> Outcome:
    """Train a GPT into `options.run_dir`, or go on with the run that is there.

    Raises:
        UserError: when configuration, data, mesh and directory do not go together; nothing has been
            written then.
    """
    keep_freed_memory()  # before jax starts its threads
    require_wide_mode(config.model.dtype)
    mesh = make_mesh(config.mesh)
    check_batch_size(config.batch_size, config.accumulation, mesh)
    directory.check_run_dir(options)
    data = prepare(config.data)
    config = settle(config, data)
    length, run_dir = config.model.context_length, options.run_dir
    source = TrainingBatches(data.train, config.batch_size, length, config.seed)
    if options.resume:
        directory.check_config(config, load_config(run_dir / directory.CONFIG), run_dir)
    program = build(config, mesh)
    metadata = {
        "config": config_to_json(config),
        "data": data.fingerprint,
        "keys": {"dropout": program.dropout_key.tolist()},
        "versions": {"jax": jax.__version__, "numpy": np.__version__},
    }
    last = min(config.steps, options.stop_after or config.steps)
    evaluation = None

    # Restore.
    state, start = restore(program, config, metadata, options)
    step = start
    directory.fill_run_dir(config, run_dir, data.tokenizer)
    with (
        directory.locked(run_dir),
        Interrupt() as interrupt,
        CheckpointWriter(run_dir / directory.CHECKPOINTS, keep=config.checkpoint.keep) as writer,
        MetricsWriter(run_dir / directory.METRICS, start if options.resume else None) as lines,
        Progress(config.steps, start) as progress,
        contextlib.closing(training_iterator(source, start)) as batches,
    ):
        introduce(progress, config, data, mesh, start)
        log = StepLog(config, mesh, warmup_cosine(config.optimizer, config.steps), lines, progress)
        for step in range(start + 1, last + 1):
            # Step.
            batch = jax.device_put(next(batches), program.rows)
            state, metrics = program.train_step(state, batch)
            # Log.
            log.add(step, metrics)
            stop = step == last or interrupt.signal is not None
            # Evaluate.
            evaluation = None
            if step % config.eval_every == 0 or step == config.steps:
                log.flush()
                evaluation = evaluate(
                    program.eval_step,
                    state.params,
                    data.val,
                    batch_size=config.batch_size,
                    context_length=length,
                    sharding=program.rows,
                    max_tokens=config.eval_tokens,
                )
                log.evaluated(step, evaluation)
            # Save.
            if step % config.checkpoint.every == 0 or stop:
                log.flush()
                val_loss = None if evaluation is None else evaluation.loss
                writer.save(step, state, {**metadata, "position": step}, val_loss)
            if stop:
                break
        log.note_compilations(program.train_step._cache_size())
        writer.wait()
        if interrupt.signal is not None:
            progress.print(f"{interrupt.signal.name}: saved step {step}; go on with --resume")
    rows = read_metrics(run_dir / directory.METRICS)
    if rows:
        draw_curves(rows, run_dir / directory.CURVES, str(run_dir.name))
    return Outcome(config, interrupt.exit_status, step, evaluation, data)


def restore(
    program: Program, config: LanguageConfig, metadata: dict[str, Any], options: RunOptions
) -> tuple[TrainState, int]:
    """The newest good checkpoint's state and step on a resume that has one, else a fresh state."""
    checkpoints = options.run_dir / directory.CHECKPOINTS
    if not (options.resume and checkpoint.steps(checkpoints)):
        return program.fresh_state(), 0
    found = checkpoint.read_metadata(checkpoints)
    made_with = config_from_json(found.metadata["config"], f"checkpoint {found.step}")
    directory.check_config(config, made_with, options.run_dir)
    directory.check_metadata(options.run_dir, found.metadata, metadata)
    for line in found.skipped:
        print(line, file=sys.stderr)
    state, found = checkpoint.restore(checkpoints, program.state, found.step)
    return state, found.step


def require_wide_mode(dtype: str) -> None:
    """Refuse float64 where jax would make float32 of it."""
    if dtype == "float64" and not jax.config.read("jax_enable_x64"):
        raise UserError("model.dtype float64 needs jax's wide mode: set JAX_ENABLE_X64=1")


def settle(config: LanguageConfig, data: PreparedData) -> LanguageConfig:
    """The configuration with nothing left open: the vocabulary's size, and paths in full."""
    needed, chosen = data.tokenizer.vocab_size, config.model.vocab_size
    if 0 < chosen < needed:
        raise UserError(
            f"model.vocab-size {chosen} is less than the tokenizer's {needed}: "
            f"choose {needed} or more, or 0 to take the tokenizer's"
        )
    model = dataclasses.replace(config.model, vocab_size=chosen or needed)
    path = config.data.path and config.data.path.resolve()
    kind = config.data.tokenizer
    kind = str(Path(kind).resolve()) if Path(kind).is_file() else kind
    text = dataclasses.replace(config.data, path=path, tokenizer=kind)
    return dataclasses.replace(config, model=model, data=text)


def introduce(
    progress: Progress, config: LanguageConfig, data: PreparedData, mesh: Mesh, start: int
) -> None:
    """Say what is about to be trained, on what."""
    device = mesh.devices.flat[0]
    shape = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    progress.print(data.description)
    progress.print(
        f"GPT of {config.model.num_parameters():,} parameters · {config.model.dtype}, "
        f"products in {product_type(config.model)} · {device.device_kind} · mesh {shape} · "
        f"jax {jax.__version__}"
    )
    if start:
        done = start >= config.steps
        progress.print(f"resumed from step {start}" + (": nothing is left to do" if done else ""))


def _place(shape: Any, place: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=place)
