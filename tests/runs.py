"""Runs of random models, as a training would have left them."""

from collections.abc import Iterable
from pathlib import Path

import jax

from jaxformer.checkpoint import split
from jaxformer.config import RunConfig
from jaxformer.data.tokenizer import Tokenizer
from jaxformer.models.functional import init_params
from jaxformer.run import directory
from jaxformer.tasks.config_io import config_to_json
from jaxformer.tasks.kinds import kind_of
from jaxformer.training.step import init_state


def save_run(
    path: Path, config: RunConfig, tokenizer: Tokenizer, steps: Iterable[int] = (1,)
) -> Path:
    """A run with a checkpoint at each step, its parameters drawn from the step's number.

    The validation loss is the step's number too: the first checkpoint is the best and stays.
    """
    directory.fill_run_dir(config, path, tokenizer)
    spec = kind_of(config).spec(config, tokenizer.vocab_size)
    with directory.checkpoint_writer(path, config) as writer:
        for step in steps:
            params = init_params(spec.model, config.model, jax.random.key(step))
            metadata = {"data": f"text of step {step}", "config": config_to_json(config)}
            state = init_state(params, spec.optimizer)
            writer.save(step, split(state), metadata)
            writer.add_val_loss(step, step)
    return path
