"""`jaxformer parity`: the measured-error table against PyTorch, and the planted bugs."""

import dataclasses
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from jaxformer.cli.arguments import parse
from jaxformer.cli.outputs import json_output
from jaxformer.errors import UserError

DESCRIPTION = (
    "Prove every layer, gradient, update and decoded token equal to PyTorch, within the bounds of "
    "jaxformer/parity/bounds.py, and show that the proofs catch planted bugs. The exit status is "
    "0 only if all hold."
)
DType = Literal["float64", "float32", "bfloat16"]


TABLE_WIDTH = 110
"""Columns of the table where the output is no terminal."""


@dataclasses.dataclass(frozen=True)
class ParityArguments:
    """The flags of `jaxformer parity`."""

    model: Literal["gpt", "transformer", "bert", "decoder", "all"] = "all"
    """The model to prove; `all` is every model."""
    layer: str | None = None
    """One layer to prove, such as attention, layer_norm or block, with its bugs alone."""
    dtype: DType | None = None
    """The type to prove it in; by default float64 and float32."""
    json: Path | None = None
    """File to write all rows and planted bugs to."""


def main(argv: Sequence[str]) -> int:
    """Run the proofs; the exit status is 0 if all hold, else 1.

    Raises:
        UserError: without PyTorch, for a model or layer that is not there, or a file that cannot be
            written.
    """
    arguments = parse(ParityArguments, argv, "jaxformer parity", DESCRIPTION)
    if importlib.util.find_spec("torch") is None:
        raise UserError(
            'PyTorch, to compare with, is not installed: pip install "jaxformer[torch]"'
        )
    from rich.console import Console

    from jaxformer.parity import report, show
    from jaxformer.parity.progress import Progress

    dtypes: Sequence[DType] = ("float64", "float32")
    if arguments.dtype is not None:
        dtypes = (arguments.dtype,)
    with json_output(arguments.json) as write_json:
        with Progress() as progress:
            found = report.run(arguments.model, dtypes, progress, arguments.layer)
        write_json(show.as_json(found))
    console = Console(soft_wrap=True)
    if not console.is_terminal:
        console.width = TABLE_WIDTH
    show.show(found, console)
    return 0 if found.ok else 1
