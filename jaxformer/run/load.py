"""A trained run opened for use: its configuration, its tokenizer and its parameters."""

import dataclasses
import sys
from pathlib import Path

import jax
from flax import nnx
from jaxtyping import Array, PyTree

from jaxformer import checkpoint
from jaxformer.batch import Specials
from jaxformer.data.tokenizer import Tokenizer, load_tokenizer
from jaxformer.data.translation import specials_of
from jaxformer.errors import UserError
from jaxformer.models.pure import abstract_model
from jaxformer.run import directory
from jaxformer.run.config_io import RunConfig, config_from_json, kind_of, load_config
from jaxformer.run.kinds import make_method, num_tokens, writing_command
from jaxformer.run.task import Method
from jaxformer.training.step import init_state


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run directory holds, ready to use on one device."""

    method: Method
    tokenizer: Tokenizer
    graph: nnx.GraphDef
    params: PyTree[Array]
    step: int
    """Optimizer steps that made these parameters."""
    data_fingerprint: str
    """SHA-256 of the text and tokenizer they were learned from."""

    @property
    def config(self) -> RunConfig:
        """The run's configuration."""
        return self.method.config

    @property
    def specials(self) -> Specials:
        """The tokens of a translation run that stand for no text."""
        return specials_of(self.tokenizer)


def load_run(run_dir: Path, kind: type[RunConfig] | None = None, *, step: int | None = None) -> Run:
    """Open a run at the given step, or else at its newest checkpoint that verifies.

    `kind` is what the caller works on, if it works on one only.

    Newer checkpoints that do not verify are named on standard error, one line each.

    Raises:
        UserError: the directory is missing, holds no run or one of another kind, or no checkpoint
            that can be used.
    """
    if not run_dir.is_dir():
        raise UserError(f"{run_dir} is not a directory: name the --run-dir of a training run")
    config = load_config(run_dir / directory.CONFIG)
    if kind is not None and not isinstance(config, kind):
        raise UserError(
            f"{run_dir} holds a {kind_of(config)} run, which this command does not read: use "
            f"{writing_command(config)}"
        )
    tokenizer = load_tokenizer(run_dir / directory.TOKENIZER)
    needed = num_tokens(config, tokenizer)
    if needed > config.model.vocab_size:
        raise UserError(
            f"{run_dir / directory.TOKENIZER} knows {needed} tokens but the model "
            f"only {config.model.vocab_size}: restore the run's own tokenizer"
        )
    method = make_method(config, tokenizer)
    graph, params = abstract_model(method.model, config.model)
    expected = jax.eval_shape(lambda p: init_state(p, method.optimizer), params)
    state, found = checkpoint.restore(run_dir / directory.CHECKPOINTS, expected, step)
    for line in found.skipped:
        print(line, file=sys.stderr)
    made_with = config_from_json(found.metadata["config"], f"checkpoint {found.step}")
    directory.check_config(config, made_with, run_dir)
    return Run(method, tokenizer, graph, state.params, found.step, found.metadata["data"])
