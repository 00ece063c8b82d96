"""The command `jaxformer`: the first word names a command, a module of this room with a function
`main(argv) -> exit status`. The module is imported once it is named, and imports jax and the like
once its own words are read, so that every `--help` answers at once.
"""

import importlib
import importlib.metadata
import sys
from collections.abc import Mapping, Sequence

from jaxformer.cli.arguments import run_command
from jaxformer.cli.help import HELP, filled, table
from jaxformer.errors import UserError, perhaps

COMMANDS: Mapping[str, str] = {
    "train": "train a model by a recipe, or by a recipe file of your own",
    "parity": "prove every layer, gradient, update and token equal to PyTorch; print the errors",
    "divergence": "find every layer at which a port departs from its PyTorch original",
    "sample": "write text with a trained GPT",
    "translate": "translate standard input with a trained Transformer",
    "evaluate": "measure a trained model on its validation text",
    "plot": "draw the curves of a run, or the losses of several side by side",
    "metrics": "print what runs have measured and how they differ",
    "attention": "draw who attends to whom in every layer and head",
    "import": "make a run of another tool's model: Hugging Face, GGUF, nanoGPT",
    "export": "write the model of a run for other tools",
    "compare": "run two models on the same tokens, each by its own tool",
    "plan": "say what a recipe will take of each device, before there is one",
}
"""Name and summary of each command; `jaxformer/cli/NAME.py` is its module."""
MODULES: Mapping[str, str] = {"import": "importing"}
"""The module of a command whose name is a word of Python's."""
STATUSES: Mapping[str, str] = {
    "0": "done",
    "1": "an error of the program itself; of parity and divergence, sides that part",
    "2": "bad input, or a file that cannot be used: one line says what to do",
    "75": "cut off by a hanging step or a lost process: start it again with --resume",
    "130": "interrupted (Ctrl-C)",
    "141": "nobody reads the output any more",
    "143": "terminated (SIGTERM)",
    "128+N": "ended by another signal N, such as 129 by a closed terminal",
}
"""Exit statuses of every command."""


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
    name, *rest = words or ["--help"]
    if name in HELP:
        print(_help())
        return 0
    if name == "--version":
        print(f"jaxformer {importlib.metadata.version('jaxformer')}")
        return 0
    if name not in COMMANDS:
        meant = perhaps(name, COMMANDS)
        raise UserError(f"unknown command {name!r}{meant}; choose one of {', '.join(COMMANDS)}")
    return importlib.import_module(f"jaxformer.cli.{MODULES.get(name, name)}").main(rest)


def _help() -> str:
    usage = (
        "usage: jaxformer COMMAND [ARGUMENTS]\n"
        "       jaxformer COMMAND --help\n"
        "       jaxformer --version"
    )
    what = filled("A Transformer and GPT in JAX and Flax, proven equal to PyTorch.")
    commands, statuses = table(COMMANDS.items()), table(STATUSES.items())
    return f"{usage}\n\n{what}\n\ncommands:\n{commands}\n\nexit statuses:\n{statuses}"
