"""A trained run opened for use: its configuration, its tokenizer and its parameters."""

import dataclasses
import sys
from pathlib import Path

import jax
from flax import nnx
from jaxtyping import Array, PyTree

from jaxformer import checkpoint
from jaxformer.config import LanguageConfig
from jaxformer.data.tokenizer import Tokenizer, load_tokenizer
from jaxformer.errors import UserError
from jaxformer.models.gpt import GPT
from jaxformer.models.pure import abstract_model
from jaxformer.run import directory
from jaxformer.run.config_io import config_from_json, load_config
from jaxformer.training.optimizer import adamw
from jaxformer.training.step import init_state


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run directory holds, ready to use on one device."""

    config: LanguageConfig
    tokenizer: Tokenizer
    graph: nnx.GraphDef
    params: PyTree[Array]
    step: int
    """Optimizer steps that made these parameters."""
    data_fingerprint: str
    """SHA-256 of the text and tokenizer they were learned from."""


def load_run(run_dir: Path, *, step: int | None = None) -> Run:
    """Open a run at the given step, or else at its newest checkpoint that verifies.

    Newer checkpoints that do not verify are named on standard error, one line each.

    Raises:
        UserError: the directory is missing, holds no GPT run, or no checkpoint that can be used.
    """
    if not run_dir.is_dir():
        raise UserError(f"{run_dir} is not a directory: name the --run-dir of a training run")
    config = load_config(run_dir / directory.CONFIG)
    tokenizer = load_tokenizer(run_dir / directory.TOKENIZER)
    if tokenizer.vocab_size > config.model.vocab_size:
        raise UserError(
            f"{run_dir / directory.TOKENIZER} knows {tokenizer.vocab_size} tokens but the model "
            f"only {config.model.vocab_size}: restore the run's own tokenizer"
        )
    graph, params = abstract_model(GPT, config.model)
    optimizer = adamw(config.optimizer, config.steps)
    expected = jax.eval_shape(lambda p: init_state(p, optimizer), params)
    state, found = checkpoint.restore(run_dir / directory.CHECKPOINTS, expected, step)
    for line in found.skipped:
        print(line, file=sys.stderr)
    made_with = config_from_json(found.metadata["config"], f"checkpoint {found.step}")
    directory.check_config(config, made_with, run_dir)
    return Run(config, tokenizer, graph, state.params, found.step, found.metadata["data"])
