"""A model of another tool becomes a run of step 0 without an optimizer.

Tensors are read one after the other and become parameters at once, so the peak of memory is that of
the parameters and a little more (docs/models.md).
"""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from jaxformer.atomic import atomic_directory
from jaxformer.checkpoint import check_path
from jaxformer.config import RunConfig
from jaxformer.errors import UserError
from jaxformer.exchange.foreign import Foreign, Options, open_foreign
from jaxformer.models.functional import abstract_model, num_parameters
from jaxformer.run.directory import TOKENIZER, save_params
from jaxformer.runtime.jax_setup import start_jax
from jaxformer.runtime.memory import return_freed_memory
from jaxformer.tasks.kinds import kind_of
from jaxformer.tasks.program import require_x64
from jaxformer.weights.convert import from_torch

ORIGIN = "origin"
"""Directory of a run with the files that came with its model."""
SHOWN = 5
"""Problems of the tensors that are told; the rest are counted."""


@dataclasses.dataclass(frozen=True)
class Imported:
    """What was imported."""

    config: RunConfig
    num_parameters: int
    num_tensors: int
    tokenizer_size: int


def import_model(source: Path, run_dir: Path, options: Options = Options()) -> Imported:  # noqa: B008
    """Write a run with the model at `source`; nothing of it stays if that fails.

    Raises:
        UserError: the model cannot be read or asks for what is not to be had here, a tensor fits no
            parameter or a parameter no tensor, or the directory is not a new one.
    """
    return_freed_memory()
    require_new(run_dir)
    check_path(run_dir)
    require_x64(options.dtype)
    foreign = open_foreign(source, options)
    config = foreign.config(run_dir.absolute() / TOKENIZER)
    start_jax()
    _, shapes = abstract_model(kind_of(config).spec(config, 0).model, config.model)
    params = foreign_params(source, foreign, shapes)
    with atomic_directory(run_dir) as directory:
        save_params(directory, config, foreign.tokenizer, params, lean=True)
        if foreign.kept:
            (directory / ORIGIN).mkdir()
        for name, content in foreign.kept.items():
            (directory / ORIGIN / name).write_bytes(content)
    return Imported(
        config, num_parameters(params), len(foreign.tensors), foreign.tokenizer.vocab_size
    )


def require_new(directory: Path) -> None:
    """Refuse a directory or file that is there, unless it is an empty directory."""
    if directory.is_symlink() or directory.is_file():
        raise UserError(f"{directory} is there already: choose another name")
    if directory.is_dir() and any(directory.iterdir()):
        raise UserError(f"{directory} is there already and not empty: choose another name")


def foreign_params(source: Path, foreign: Foreign, shapes: PyTree) -> PyTree[jax.Array]:
    """The parameters of another tool's model, read tensor by tensor.

    Raises:
        UserError: naming what does not fit.
    """
    try:
        return from_torch(
            foreign.tensors, foreign.table, shapes, lambda array, leaf: jnp.asarray(array)
        )
    except UserError as error:
        first, *others = str(error).splitlines()
        shown = "; ".join([first, *(line.strip() for line in others[:SHOWN])])
        more = f"; and {len(others) - SHOWN} more" if len(others) > SHOWN else ""
        raise UserError(f"{source}: {shown}{more}") from None
