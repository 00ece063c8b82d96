"""A trained run opened for use: its configuration, its tokenizer and its parameters."""

import dataclasses
import functools
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, PyTree

from jaxformer import checkpoint
from jaxformer.batch import SpecialTokens
from jaxformer.checkpoint import Checkpoint
from jaxformer.config import MeshConfig, RunConfig, require_positive
from jaxformer.data.tokenizer import Tokenizer, load_tokenizer
from jaxformer.data.translation import special_tokens_of
from jaxformer.errors import UserError
from jaxformer.evaluation.loss import Evaluation, evaluate
from jaxformer.models.functional import abstract_model
from jaxformer.run import directory
from jaxformer.sharding.mesh import batch_sharding, make_mesh
from jaxformer.tasks.config_io import config_from_json, load_config
from jaxformer.tasks.kinds import kind_of
from jaxformer.tasks.task import TrainSpec
from jaxformer.training.average import average as average_of
from jaxformer.training.step import TrainState, init_state, make_eval_step


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run directory holds, ready to use on one device."""

    spec: TrainSpec
    tokenizer: Tokenizer
    graphdef: nnx.GraphDef
    params: PyTree[Array]
    step: int
    """Optimizer steps that made these parameters."""
    data_fingerprint: str
    """SHA-256 of the text and tokenizer they were learned from."""

    @property
    def config(self) -> RunConfig:
        """The run's configuration."""
        return self.spec.config

    @property
    def specials(self) -> SpecialTokens:
        """The tokens of a translation run that stand for no text."""
        return special_tokens_of(self.tokenizer)

    def text_of(self, tokens: np.ndarray) -> str:
        """Text of a translation's tokens, without those that only a padded vocabulary has."""
        return self.tokenizer.decode(tokens[tokens < self.tokenizer.vocab_size])


def load_run(
    run_dir: Path,
    kind: type[RunConfig] | None = None,
    *,
    step: int | None = None,
    average: int = 1,
) -> Run:
    """Open a run at the given step, or else at its newest checkpoint that verifies.

    Args:
        run_dir: the run's directory.
        kind: what the caller works on, if it works on one only.
        step: of the checkpoint.
        average: how many checkpoints to average, that one and those before it that verify
            (Vaswani et al. 2017, section 6.1).

    Checkpoints that do not verify are named on standard error, one line each.

    Raises:
        UserError: the directory is missing, holds no run or one of another kind, no checkpoint
            that can be used, or fewer than are to be averaged.
    """
    require_positive("average", average)
    if not run_dir.is_dir():
        raise UserError(f"{run_dir} is not a directory: name the --run-dir of a training run")
    config = load_config(run_dir / directory.CONFIG)
    if kind is not None and not isinstance(config, kind):
        raise UserError(
            f"{run_dir} holds a {config.kind} run, which this command does not read: use "
            f"jaxformer {kind_of(config).command}"
        )
    tokenizer = load_tokenizer(run_dir / directory.TOKENIZER)
    needed = tokenizer.vocab_size + kind_of(config).num_specials
    if needed > config.model.vocab_size:
        raise UserError(
            f"{run_dir / directory.TOKENIZER} knows {needed} tokens but the model "
            f"only {config.model.vocab_size}: restore the run's own tokenizer"
        )
    spec = kind_of(config).spec(config, tokenizer.vocab_size)
    graphdef, shapes = abstract_model(spec.model, config.model)
    expected = jax.eval_shape(lambda p: init_state(p, spec.optimizer), shapes)
    read = _read_one if average == 1 else functools.partial(_read_average, count=average)
    params, found = read(run_dir / directory.CHECKPOINTS, expected, step)
    for line in found.skipped:
        print(line, file=sys.stderr)
    made_with = config_from_json(found.metadata["config"], f"checkpoint {found.step}")
    directory.check_config(config, made_with, run_dir)
    return Run(spec, tokenizer, graphdef, params, found.step, found.metadata["data"])


def _read_one(
    checkpoints: Path, expected: TrainState, step: int | None
) -> tuple[PyTree[Array], Checkpoint]:
    """The parameters of a checkpoint, and what it holds beside its arrays."""
    state, found = checkpoint.restore(checkpoints, expected, step)
    return state.params, found


def _read_average(
    checkpoints: Path, expected: TrainState, step: int | None, count: int
) -> tuple[PyTree[Array], Checkpoint]:
    """The mean of a checkpoint's parameters and those of the newest before it that verify."""
    newest = checkpoint.read_metadata(checkpoints, step)
    skipped = list(newest.skipped)
    made_with = config_from_json(newest.metadata["config"], f"checkpoint {newest.step}")
    until = [other for other in checkpoint.steps(checkpoints) if other <= newest.step]
    steps: list[int] = []
    for candidate in directory.checkpoints_to_average(until, made_with):
        try:
            if len(steps) < count:
                steps.append(checkpoint.read_metadata(checkpoints, candidate).step)
        except UserError as fault:
            skipped.append(str(fault))
    if len(steps) < count:
        faults = f" ({'; '.join(skipped)})" if skipped else ""
        raise UserError(
            f"{checkpoints} has {len(steps)} checkpoints to average, not {count}{faults}: average "
            f"at most {len(steps)}, or train with --checkpoint.keep {count}"
        )
    params = average_of(_read_one(checkpoints, expected, each)[0] for each in steps)
    return params, dataclasses.replace(newest, skipped=tuple(skipped))


def evaluate_run(run: Run, batches: Iterable[Any]) -> Evaluation:
    """The mean loss of a run's parameters over the batches, on one device."""
    mesh = make_mesh(MeshConfig(data=1), jax.local_devices()[:1])
    eval_step = jax.jit(make_eval_step(run.graphdef, run.spec.eval_objective))
    return evaluate(eval_step, run.params, batches, batch_sharding(mesh))
