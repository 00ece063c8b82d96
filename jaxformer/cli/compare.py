"""`jaxformer compare A B`: the same model by two tools, or two models, on the same tokens."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from jaxformer.cli.arguments import parse
from jaxformer.cli.outputs import json_output
from jaxformer.config import require_positive
from jaxformer.errors import UserError
from jaxformer.terminal import say

DESCRIPTION = (
    "Run two models on the same tokens, each by the tool that it is written for, and print how "
    "many tokens both find the likeliest and the worst difference of their log-probabilities, in "
    "nats. A run is run by jaxformer, a Hugging Face directory and a .gguf file by transformers. "
    "A continues each prompt with its likeliest tokens, both score the whole. The exit status is "
    "0 if all tokens are equal and the difference is within the bound, else 1."
)
Named = Annotated[str, tyro.conf.Positional]


@dataclasses.dataclass(frozen=True)
class CompareArguments:
    """The arguments of `jaxformer compare`."""

    a: Annotated[Named, tyro.conf.arg(metavar="A")]
    """A run, a Hugging Face directory or a .gguf file."""
    b: Annotated[Named, tyro.conf.arg(metavar="B")]
    """Another one."""
    prompts: Path | None = None
    """File of prompts, of a Transformer of sources, one per line; by default drawn tokens."""
    tokens: int = 32
    """Tokens that A adds to each prompt."""
    bound: float = 1e-3
    """Largest difference of log-probabilities, in nats, that passes."""
    json: Path | None = None
    """File to write the figures to as JSON."""

    def __post_init__(self) -> None:
        require_positive("tokens", self.tokens)
        require_positive("bound", self.bound)


def main(argv: Sequence[str]) -> int:
    """Compare; the exit status is 0 within the bound, else 1.

    Raises:
        UserError: a side cannot be opened, both are models of two kinds, or a prompt cannot be
            encoded.
    """
    arguments = parse(CompareArguments, argv, "jaxformer compare", DESCRIPTION)
    texts = None if arguments.prompts is None else read_prompts(arguments.prompts)
    from jaxformer.exchange import comparison, sides

    with json_output(arguments.json) as write_json:
        a, b = sides.open_side(arguments.a), sides.open_side(arguments.b)
        comparison.require_alike(a, b)
        unlike = None
        if texts is None:
            start = comparison.start_of(a, b)
            rows = sides.drawn_rows([a, b], comparison.NUM_ROWS, comparison.LENGTH, start)
        else:
            rows, unlike = comparison.text_rows(a, b, texts)
        found = comparison.compare(a, b, rows, arguments.tokens, arguments.bound)
        if unlike is not None:
            found = dataclasses.replace(found, first_difference=unlike)
        write_json(found.as_json())
    say(str(found))
    return 0 if found.ok else 1


def read_prompts(path: Path) -> list[str]:
    """The lines of a file.

    Raises:
        UserError: it cannot be read, or has none.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise UserError(
            f"--prompts {path} cannot be read ({error.strerror}): name a file"
        ) from None
    except UnicodeDecodeError:
        raise UserError(f"--prompts {path} is not UTF-8 text: convert it") from None
    lines = [line for line in lines if line.strip()]
    if not lines:
        raise UserError(f"--prompts {path} has no line of text: give one prompt per line")
    return lines
