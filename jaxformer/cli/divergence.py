"""`jaxformer divergence`: every layer at which a port departs from its PyTorch original."""

import dataclasses
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from jaxformer.cli.arguments import parse
from jaxformer.cli.outputs import json_output, text_output
from jaxformer.errors import UserError
from jaxformer.terminal import say

DESCRIPTION = (
    "Compare a model in JAX with its original in PyTorch, by the values inside: which layers are "
    "at fault, by how much and why. Neither the names nor the layouts of both have to agree. The "
    "exit status is 0 if nothing departs, 1 if something does or nothing could be compared."
)

Factory = Annotated[str, tyro.conf.arg(metavar="FILE.py:FUNCTION")]


@dataclasses.dataclass(frozen=True)
class DivergenceArguments:
    """The flags of `jaxformer divergence`; a factory is a function without arguments."""

    jax: Factory
    """Returns an NNX module, (Linen module, variables), (function, params) or a callable pytree."""
    torch: Factory
    """Returns an nn.Module, or a function of tensors."""
    inputs: Factory
    """Returns a tuple of values, a dict of keyword values, or {"jax": ..., "torch": ...}."""
    carry: bool = False
    """Put the original's weights into the port first; so it is done where nobody loaded any."""
    pair: tyro.conf.UseAppendAction[
        tuple[Annotated[str, tyro.conf.arg(metavar="MODULE=PLACE")], ...]
    ] = ()
    """A PyTorch module and the module or the line of the port that makes its output, such as
    h.0.attn=blocks.0.attention or h.0.attn=model.py:42; may be given several times. By default
    values are paired by their numbers."""
    steps: Annotated[int, tyro.conf.arg(metavar="N")] = 0
    """Compare so many steps of the optimizers as well. --jax then returns (model, optax
    transformation), --torch (model, optimizer), and behind it learning rate schedulers."""
    json: Path | None = None
    """File to write the verdict, all faults and all modules to."""
    html: Path | None = None
    """File to write a page to: the tree of the port, with the error along the depth."""


def main(argv: Sequence[str]) -> int:
    """Compare; the exit status is 0 if the port agrees, else 1.

    Raises:
        UserError: without PyTorch, for a factory that is not there or fails, or a file that cannot
            be written.
    """
    arguments = parse(DivergenceArguments, argv, "jaxformer divergence", DESCRIPTION)
    if importlib.util.find_spec("torch") is None:
        raise UserError(
            'PyTorch, to compare with, is not installed: pip install "jaxformer[torch]"'
        )
    from jaxformer.porting import divergence
    from jaxformer.porting.factories import load_factory
    from jaxformer.porting.mapping import parse_pairs
    from jaxformer.porting.page import as_html

    pairs = parse_pairs(arguments.pair)
    with (
        json_output(arguments.json) as write_json,
        text_output(arguments.html, "--html") as write_html,
    ):
        theirs = load_factory(arguments.torch, "--torch")()
        mine = load_factory(arguments.jax, "--jax")()
        inputs = load_factory(arguments.inputs, "--inputs")()
        report = divergence(
            mine, theirs, inputs, carry=arguments.carry, pairs=pairs, steps=arguments.steps
        )
        write_json(report.as_json())
        write_html(as_html(report))
    say(str(report))
    return 0 if report.ok else 1
