"""A training run, chapter by chapter: build, restore, step, log, save, evaluate.

The train step is one jitted function of a state that is sharded over a mesh and donated to it.
Dropout, the order of the data and the initial weights follow from the seed and the step alone, so a
run that is stopped and resumed equals an uninterrupted one to the last bit (on GPUs with
`--deterministic`). What differs between the kinds of runs is in their `Task`. Of several processes
each computes and saves its part; the first alone writes the other files and prints.
"""

import contextlib
import dataclasses
import os
import sys
from typing import Any

import jax

from jaxformer import checkpoint
from jaxformer.config import RunConfig, RunOptions
from jaxformer.data.batches import training_iterator
from jaxformer.evaluation.loss import Evaluation, evaluate
from jaxformer.extras import missing
from jaxformer.models.functional import num_parameters
from jaxformer.monitor.loss_monitor import LossMonitor
from jaxformer.monitor.metrics import MetricsWriter, read_metrics
from jaxformer.monitor.plots import draw_curves
from jaxformer.monitor.profile import Profiler, require_profiled
from jaxformer.monitor.progress import Progress
from jaxformer.monitor.step_log import StepLog, product_type
from jaxformer.run import directory, resume
from jaxformer.run.initial import require_init_from
from jaxformer.runtime import distributed, jax_setup
from jaxformer.runtime.compile_cache import enable_compile_cache
from jaxformer.runtime.memory import keep_freed_memory
from jaxformer.runtime.signals import AskedToEndError, MultiHostPreemptionGuard, PreemptionGuard
from jaxformer.runtime.watchdog import Watchdog
from jaxformer.runtime.xla_setup import make_deterministic
from jaxformer.sharding.mesh import make_mesh, shard_batch
from jaxformer.tasks.config_io import load_config
from jaxformer.tasks.kinds import kind_of, step_cost, with_objective
from jaxformer.tasks.program import Program, build, require_x64
from jaxformer.tasks.remarks import remarks
from jaxformer.tasks.task import Task
from jaxformer.training.objectives import Objective


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    config: RunConfig
    exit_status: int
    """0, or 128 + the signal that ended it early."""
    step: int
    """Optimizer steps done."""
    evaluation: Evaluation | None
    """The validation of the last step, if the config validates there."""
    data: Any
    """The prepared data of the run."""

    @property
    def finished(self) -> bool:
        """Whether the whole schedule is done, and no signal asked for an early end."""
        return self.step >= self.config.steps and self.exit_status == 0


@distributed.lost_processes_named()
def train(config: RunConfig, options: RunOptions, objective: Objective | None = None) -> Outcome:
    """Train a model into `options.run_dir`, or continue the run that is there.

    Args:
        config: of the run.
        options: where it lives, and how far this process takes it.
        objective: what the steps lower, instead of the loss of the config's kind; validation is
            that loss nevertheless. Checkpoints hold its name.

    Raises:
        UserError: when configuration, data, mesh and directory do not go together, before anything
            is written; later, when a save fails or too many updates in a row are skipped.
        SystemExit: with the exit status, in every process of a run but the first: what comes after
            the training is for that one alone.
    """
    keep_freed_memory()  # before jax starts its threads
    if options.deterministic:
        make_deterministic()  # before jax reads XLA's flags
    require_x64(config.model.dtype)
    distributed.join(options.distributed)
    jax_setup.start_jax()
    if options.compile_cache:
        enable_compile_cache()
    mesh = make_mesh(config.mesh)
    directory.check_run_dir(options)
    directory.check_data(config, options.run_dir)
    if not options.resume:
        require_init_from(config)
    task, run_dir = kind_of(config).task(config, mesh), options.run_dir
    if objective is not None:
        task = with_objective(task, objective, mesh)
    config, data = task.spec.config, task.data
    if options.resume:
        made_with = load_config(run_dir / directory.CONFIG)
        directory.check_config(config, made_with, run_dir, resume.ADVICE)
    program = build(task.spec, mesh)
    metadata = resume.metadata_of(task, program)
    last = min(config.steps, options.stop_after or config.steps)
    evaluation = None

    # Restore.
    state, begun = resume.restore(task, program, metadata, options)
    step, first = (start := begun.step), distributed.is_first()
    require_profiled(options.profiled_steps, start, last)
    is_new = first and directory.fill_run_dir(config, run_dir, data.tokenizer)
    metrics_file = run_dir / directory.METRICS if first else None
    profiled = options.profiled_steps if first else range(0)
    with (
        directory.locked(run_dir) if first else contextlib.nullcontext(),
        PreemptionGuard() if jax.process_count() == 1 else MultiHostPreemptionGuard() as interrupt,
        directory.checkpoint_writer(run_dir, config, is_new) as writer,
        MetricsWriter(metrics_file, start if options.resume else None) as lines,
        open(os.devnull, "w") as nowhere,
        Progress(config.steps, start, (sys.stdout if first else None) or nowhere) as progress,
        contextlib.closing(training_iterator(task.batches, start)) as batches,
        Watchdog(options.watchdog, run_dir / f"stacks-{jax.process_index()}.txt") as watchdog,
        Profiler(profiled, run_dir / directory.PROFILE, progress.print) as profiler,
    ):
        introduce(progress, task, program)
        for line in resume.introduction(task, begun, options.resume):
            progress.print(line)
        done = read_metrics(run_dir / directory.METRICS) if start else []
        before = [row for row in done if row["step"] <= start]
        monitor = LossMonitor(options.max_skipped, before)
        log = StepLog(config, mesh, lines, progress, monitor, options.log_every)

        def validate(step: int, params: Any) -> Evaluation | None:
            """Score and log; None if the run was asked to end during it."""
            log.flush()
            scored = watchdog.over(task.validation(), "evaluation after step", step)
            try:
                found = evaluate(program.eval_step, params, interrupt.over(scored), program.rows)
            except AskedToEndError:
                return None
            writer.add_val_loss(step, found.loss)
            log.evaluated(step, found)
            return found

        def save(step: int) -> None:
            log.flush()
            lines.sync()
            watchdog.expect("checkpoint", step)
            writer.save(step, checkpoint.split(state), {**metadata, "position": step})

        # On CPUs a collective waits 30 s for the last process.
        visible = directory.wait_until_visible(run_dir)
        distributed.assert_same_on_all_processes(f"ready, and sees the run: {visible}")
        validated = {row["step"] for row in before if row["split"] == "val"}
        if start not in validated and is_to_validate(config, start):  # it was interrupted
            evaluation = validate(start, state.params)
        for step in range(start + 1, last + 1):
            # Step.
            watchdog.expect("step", step)
            profiler.before(step, state)
            batch = next(batches)
            with jax.profiler.StepTraceAnnotation("step", step_num=step):
                state, metrics = program.train_step(state, shard_batch(batch, program.rows))
            profiler.after(step, state)
            # Log.
            log.add(step, metrics, step_cost(config, batch))
            stop = step == last or interrupt.reached()
            # Save.
            writer.check()
            is_saved = step % config.checkpoint.every == 0 or stop
            if is_saved:
                save(step)
            # Evaluate.
            evaluation = None
            if is_to_validate(config, step):
                evaluation = validate(step, state.params)
                if evaluation is None and not is_saved:
                    save(step)
                stop = stop or evaluation is None
            if stop:
                break
        log.note_compilations(program.train_step._cache_size(), task.num_shapes)
        writer.wait()
        # The first process hashes what the others only wrote.
        distributed.assert_same_on_all_processes(f"saved {step}")
        if interrupt.signal is not None or step < config.steps:
            cause = "--stop-after" if interrupt.signal is None else interrupt.signal.name
            progress.print(f"{cause}: saved step {step} of {config.steps}; continue with --resume")
    distributed.shutdown(interrupt.exit_status)
    rows = read_metrics(run_dir / directory.METRICS)
    if rows and interrupt.signal is None:  # a run that is to end draws no picture
        label_smoothing = kind_of(config).label_smoothing(config)
        if lacking := missing("plot"):
            print(f"the curves are not drawn: {lacking}", file=sys.stderr)
        else:
            draw_curves(rows, run_dir / directory.CURVES, run_dir.name, label_smoothing)
    return Outcome(config, interrupt.exit_status, step, evaluation, data)


def is_to_validate(config: RunConfig, step: int) -> bool:
    """Whether the validation loss after this step belongs to the run."""
    return step > 0 and (step % config.eval_every == 0 or step == config.steps)


def introduce(progress: Progress, task: Task, program: Program) -> None:
    """Print what is trained and on what."""
    config = task.spec.config
    device = program.mesh.devices.flat[0]
    mesh = " x ".join(f"{axis} {size}" for axis, size in program.mesh.shape.items())
    several = jax.process_count() > 1
    processes = f"{jax.process_count()} processes · " if several else ""
    for line in task.description:
        progress.print(line)
    for line in remarks(config, task.data):
        progress.print(f"warning: {line}")
    progress.print(
        f"{task.spec.model.__name__} of {num_parameters(program.state.params):,} parameters · "
        f"{config.model.dtype}, products in {product_type(config.model)} · "
        f"{device.device_kind} · mesh {mesh} · {processes}jax {jax.__version__}"
    )
