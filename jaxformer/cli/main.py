"""The command `jaxformer`: the first word names a command, a module of this room with a function
`main(argv) -> exit status`. The module is imported once it is named, and imports jax and the like
once its own words are read, so that every `--help` answers at once.
"""

import difflib
import importlib
import importlib.metadata
import sys
from collections.abc import Mapping, Sequence

from jaxformer.cli.arguments import run_command
from jaxformer.errors import UserError

COMMANDS: Mapping[str, str] = {
    "parity": "prove every layer, gradient, update and token equal to PyTorch; print the errors",
    "sample": "write text with a trained GPT",
    "translate": "translate standard input with a trained Transformer",
    "evaluate": "measure a trained model on its validation text",
    "plot": "draw the curves of a run, or the losses of several side by side",
    "metrics": "print what runs have measured and how they differ",
    "attention": "draw who attends to whom in every layer and head",
    "plan": "say what a recipe will take of each device, before there is one",
}
"""Name and summary of each command; `jaxformer/cli/NAME.py` is its module."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command that the first word names.

    Raises:
        SystemExit: with the exit status, unless that is 0; the statuses are those of
            `jaxformer.cli.arguments`.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    prog = f"jaxformer {words[0]}" if words and words[0] in COMMANDS else "jaxformer"
    run_command(prog, lambda: _dispatch(words))


def _dispatch(words: list[str]) -> int:
    if not words:
        raise UserError(f"no command given; choose one of {', '.join(COMMANDS)}")
    name, *rest = words
    if name in ("-h", "--help"):
        print(_help())
        return 0
    if name == "--version":
        print(f"jaxformer {importlib.metadata.version('jaxformer')}")
        return 0
    if name not in COMMANDS:
        similar = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"; perhaps you meant {similar[0]}" if similar else ""
        raise UserError(f"unknown command {name!r}{hint}; choose one of {', '.join(COMMANDS)}")
    return importlib.import_module(f"jaxformer.cli.{name}").main(rest)


def _help() -> str:
    width = max(map(len, COMMANDS))
    rows = [f"  {name:{width}}  {summary}" for name, summary in COMMANDS.items()]
    return "\n".join(
        [
            "usage: jaxformer COMMAND [ARGUMENTS]",
            "       jaxformer COMMAND --help",
            "       jaxformer --version",
            "",
            "A Transformer and GPT in JAX and Flax, proven equal to PyTorch.",
            "",
            "commands:",
            *rows,
            "",
            "Models are trained by the recipes: python -m train.gpt_stdlib --help",
        ]
    )
