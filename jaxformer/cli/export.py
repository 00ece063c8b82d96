"""`jaxformer export RUN TARGET`: the model of a run as other tools read it."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro

from jaxformer.cli.arguments import CheckpointArguments, RunPath, parse
from jaxformer.config import require_positive
from jaxformer.terminal import say

DESCRIPTION = (
    "Write the model and the tokenizer of a run for other tools: a GPT as GPT-2, BERT as BERT, a "
    "Transformer as Marian where it is one (docs/models.md). What was written is read again by "
    "jaxformer, to the bit, and by the other tool, if it is installed, on the same tokens. Nothing "
    "is written if they differ."
)


@dataclasses.dataclass(frozen=True)
class ExportArguments:
    """The arguments of `jaxformer export`."""

    run: RunPath
    """Directory of the run."""
    target: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="TARGET")]
    """What to write, which must not be there."""
    checkpoint: Annotated[CheckpointArguments, tyro.conf.arg(name="")]
    format: Literal["hf"] = "hf"
    """`hf` is a directory for transformers."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of the tensors in the file."""
    average: int = 1
    """Export the mean of the parameters of the newest N checkpoints."""
    verify: bool = True
    """Have the other tool read what was written."""

    def __post_init__(self) -> None:
        require_positive("average", self.average)


def main(argv: Sequence[str]) -> int:
    """Export; the exit status is 0.

    Raises:
        UserError: a run that cannot be exported, or a target that is there.
    """
    arguments = parse(ExportArguments, argv, "jaxformer export", DESCRIPTION)
    from jaxformer.exchange.exporting import export_huggingface
    from jaxformer.exchange.importing import require_new
    from jaxformer.run.load import load_run

    require_new(arguments.target)
    run = load_run(arguments.run, average=arguments.average, **vars(arguments.checkpoint))
    done = export_huggingface(run, arguments.target, arguments.dtype, verify=arguments.verify)
    for note in done.notes:
        say(f"note: {note}")
    by = "" if done.found is None else f"; by transformers: {done.found}"
    say(f"{arguments.target}: step {run.step:,} of {arguments.run}, read again to the bit{by}")
    return 0
