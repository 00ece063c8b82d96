"""`jaxformer export RUN TARGET`: the model of a run as other tools read it."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from jaxformer.cli.arguments import CheckpointArguments, RunPath, parse
from jaxformer.config import require_positive
from jaxformer.errors import UserError
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
    format: Literal["hf", "gguf"] = "hf"
    """`hf` is a directory for transformers, `gguf` a file for llama.cpp."""
    dtype: Literal["float32", "bfloat16", "float16", "q8_0", "q4_0"] = "float32"
    """Type of the tensors in the file; the last two are GGUF's, of 8 and 4 bits."""
    average: int = 1
    """Export the mean of the parameters of the newest N checkpoints."""
    verify: bool = True
    """Have the other tool read what was written."""

    def __post_init__(self) -> None:
        require_positive("average", self.average)
        if self.format == "hf" and self.dtype in ("q8_0", "q4_0"):
            raise UserError(f"--dtype {self.dtype} is a type of --format gguf: choose both")
        if self.format == "gguf" and self.target.suffix != ".gguf":
            raise UserError(f"{self.target} is to be a GGUF file: name it {self.target.name}.gguf")


def main(argv: Sequence[str]) -> int:
    """Export; the exit status is 0.

    Raises:
        UserError: a run that cannot be exported, or a target that is there.
    """
    arguments = parse(ExportArguments, argv, "jaxformer export", DESCRIPTION)
    from jaxformer.exchange.exporting import export_huggingface
    from jaxformer.exchange.exporting_gguf import export_gguf
    from jaxformer.exchange.importing import require_new
    from jaxformer.run.load import load_run

    require_new(arguments.target)
    run = load_run(arguments.run, average=arguments.average, **vars(arguments.checkpoint))
    write: Any = export_gguf if arguments.format == "gguf" else export_huggingface
    done = write(run, arguments.target, arguments.dtype, verify=arguments.verify)
    for note in done.notes:
        say(f"note: {note}")
    plain = arguments.format == "hf" or arguments.dtype == "float32"
    bits = " to the bit" if plain else ""
    by = "" if done.found is None else f"; by transformers: {done.found}"
    say(f"{arguments.target}: step {run.step:,} of {arguments.run}, read again{bits}{by}")
    return 0
