"""The weights that a run begins with, if they are not random: another run's, or those of a file.

All is checked before anything of the new run is written; the optimizer's state is fresh.
"""

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from jaxtyping import PyTree

from jaxformer import checkpoint
from jaxformer.checkpoint import PARAMS
from jaxformer.config import RunConfig
from jaxformer.errors import UserError
from jaxformer.models.functional import abstract_model, flat_params
from jaxformer.models.stacked import unstack_layers
from jaxformer.run.directory import CHECKPOINTS, TOKENIZER
from jaxformer.run.load import check_own, open_run
from jaxformer.runtime import distributed
from jaxformer.tasks.kinds import kind_of
from jaxformer.tasks.program import Program
from jaxformer.tasks.task import Task, TrainSpec
from jaxformer.terminal import say
from jaxformer.training.step import TrainState
from jaxformer.weights.convert import from_torch, matching
from jaxformer.weights.files import open_tensors

SHOWN = 5
"""Problems of a file that are told; the rest are counted."""
TRAINING_ONLY = {
    "dropout_rate", "attention_dropout", "attention", "initializer", "init_std", "remat",
    "scan_layers",
}  # fmt: skip
"""Settings of a model that may differ: given weights are the same function with each of them."""
SHAPE_ONLY = {"context_length", "dtype"}
"""Settings that may differ if the weights have the same shapes and types nevertheless."""


def require_init_from(config: RunConfig) -> None:
    """Refuse a missing `init_from`, before the data are prepared.

    Raises:
        UserError: naming it.
    """
    if config.init_from is not None and not config.init_from.exists():
        raise UserError(
            f"init-from {config.init_from} is not there: name the directory of a run or a "
            "safetensors file"
        )


def initial_state(task: Task, program: Program) -> tuple[TrainState, str]:
    """The state before the first step, and a line that says where its weights come from, if any.

    Raises:
        UserError: the weights cannot be read or are not those of such a model; of a run also if
            its tokenizer is another.
    """
    path = task.spec.config.init_from
    if path is None:
        return jax.block_until_ready(program.fresh_state()), ""  # too large a model fails here
    if path.is_dir():
        params, step = params_of_run(path, task, program)
        origin = f"{path}, step {step:,}"
    else:
        params, origin = params_of_file(path, task.spec.config, program), str(path)
    state = jax.block_until_ready(program.state_of(params))
    return state, f"begins with the weights of {origin}"


def params_of_run(path: Path, task: Task, program: Program) -> tuple[PyTree, int]:
    """The parameters of another run's newest checkpoint that verifies, and its step."""
    spec, tokenizer = open_run(path)
    same_tokens = tokenizer.fingerprint == task.data.tokenizer.fingerprint
    problems = [*differences(task.spec, spec, same_tokens)]
    if not same_tokens:
        taken = f": take it by --data.tokenizer {path / TOKENIZER}"
        can_be = hasattr(task.spec.config.data, "tokenizer")
        problems.append(f"its tokenizer is another{taken if can_be else ''}")
    if problems:
        raise UserError(f"init-from {path} does not fit this run: {'; '.join(problems)}")
    found = checkpoint.read_metadata(path / CHECKPOINTS, items=[PARAMS])
    check_own(path, spec, tokenizer, found)
    distributed.assert_same_on_all_processes(f"begins with step {found.step} of {path}")
    for line in found.skipped:
        if distributed.is_first():
            say(line, sys.stderr)
    items = checkpoint.load(path / CHECKPOINTS, found, {PARAMS: program.state.params})
    return items[PARAMS], found.step


def params_of_file(path: Path, config: RunConfig, program: Program) -> PyTree:
    """The parameters in a file of tensors, named as the twin's or a family's."""
    tensors, like = open_tensors(path), program.state.params
    try:
        params = from_torch(tensors, matching(tensors, kind_of(config).tables, like), like)
    except UserError as error:
        first, *others = str(error).splitlines()
        shown = "; ".join([first, *(line.strip() for line in others[:SHOWN])])
        more = f"; and {len(others) - SHOWN} more" if len(others) > SHOWN else ""
        raise UserError(f"init-from {path}: {shown}{more}") from None

    def place(array: Any, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        assert leaf.sharding is not None
        return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda index: array[index])

    return jax.tree.map(place, params, like)


def differences(ours: TrainSpec, theirs: TrainSpec, same_tokens: bool) -> Iterator[str]:
    """In which settings another run's model is not the same function of its weights.

    The size of the vocabulary is one of them if both have the same tokenizer.
    """
    if theirs.model is not ours.model:
        yield f"it is a {theirs.model.__name__}, not a {ours.model.__name__}"
        return
    alike = TRAINING_ONLY | (SHAPE_ONLY if leaves(ours) == leaves(theirs) else set())
    alike = alike if same_tokens else alike | {"vocab_size"}
    for field in dataclasses.fields(ours.config.model):
        our, their = (getattr(spec.config.model, field.name) for spec in (ours, theirs))
        if our != their and field.name not in alike:
            yield f"--model.{field.name.replace('_', '-')} {our} (it has {their})"


def leaves(spec: TrainSpec) -> dict[str, Any]:
    """Shape and type of each parameter, by its path."""
    return flat_params(unstack_layers(abstract_model(spec.model, spec.config.model)[1]))
