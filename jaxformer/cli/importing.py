"""`jaxformer import SOURCE RUN`: a run with the model of another tool."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro

from jaxformer.cli.arguments import parse
from jaxformer.terminal import say

DESCRIPTION = (
    "Write a run of step 0 with the weights and the tokenizer of another tool's model: a Hugging "
    "Face directory (GPT-2, BERT, Marian; docs/models.md), a .gguf file or a checkpoint of "
    "nanoGPT. Whatever the model asks for and is not to be had here is refused. All commands work "
    "on such a run, and others begin with it by --init-from."
)


@dataclasses.dataclass(frozen=True)
class ImportArguments:
    """The arguments of `jaxformer import`."""

    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """A directory with a config.json, a .gguf file or a nanoGPT .pt."""
    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Directory of the new run."""
    tokenizer: str | None = None
    """File of the tokenizer, or `ids` for texts of token numbers; by default the model's own."""
    dtype: Literal["float32", "bfloat16", "float64"] = "float32"
    """Type of the run's activations and matrix products."""
    mask_token: int | None = None
    """Number of BERT's mask token; by default that of [MASK]."""
    ignore: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A key of config.json that is unknown here and does not change the function; may be given
    several times."""


def main(argv: Sequence[str]) -> int:
    """Import; the exit status is 0.

    Raises:
        UserError: a model that cannot be imported, or a directory that is not a new one.
    """
    arguments = parse(ImportArguments, argv, "jaxformer import", DESCRIPTION)
    from jaxformer.exchange.foreign import Options
    from jaxformer.exchange.importing import import_model
    from jaxformer.tasks.kinds import kind_of

    options = Options(
        tokenizer=arguments.tokenizer,
        mask_token=arguments.mask_token,
        dtype=arguments.dtype,
        ignore=arguments.ignore,
    )
    found = import_model(arguments.source, arguments.run, options)
    say(
        f"{arguments.run}: {found.num_parameters:,} parameters of {found.num_tensors} tensors, "
        f"{found.tokenizer_size:,} tokens; next: jaxformer {kind_of(found.config).command} "
        f"{arguments.run}"
    )
    return 0
