"""Pairs that the user gives: which place of the port makes the output of a PyTorch module.

A place is a module of NNX (`blocks.0.attention`), a scope of Linen (`GPT/h_0/attn`, or the end of
it) or a line of source (`model.py:42`). The values that leave it may stand for the module's output,
and no others; of several the most similar one does.
"""

import re
from collections.abc import Mapping, Sequence

from jaxformer.errors import UserError, perhaps
from jaxformer.porting.layers import jax_name
from jaxformer.porting.recorder import Recording
from jaxformer.porting.tape import Tape


def parse_pairs(words: Sequence[str]) -> dict[str, str]:
    """The pairs of `--pair MODULE=PLACE`, given several times.

    Raises:
        UserError: for one without both sides, or a module that has two.
    """
    pairs: dict[str, str] = {}
    for word in words:
        module, _, place = word.partition("=")
        if not module or not place:
            raise UserError(
                f"--pair {word!r} is no pair: write MODULE=PLACE, such as h.0=model.py:42"
            )
        if module in pairs:
            raise UserError(f"--pair {word!r}: {module} is already paired with {pairs[module]}")
        pairs[module] = place
    return pairs


def chosen_places(
    pairs: Mapping[str, str], recording: Recording, tape: Tape
) -> dict[int, list[int]]:
    """The places that may stand for the output values of the modules in `pairs`.

    Raises:
        UserError: when there is no such module or place, or nothing there has the output's size.
    """
    chosen: dict[int, list[int]] = {}
    called = {call.name for call in recording.calls}
    for module, name in pairs.items():
        if module not in called:
            raise UserError(
                f"--pair {module}={name}: the PyTorch model calls no module {module}"
                f"{perhaps(module, called)}"
            )
        places = leaving(tape, name)
        if not places:
            known = {jax_name(place.scope) for place in tape.places}
            raise UserError(
                f"--pair {module}={name}: the port has no module and no line {name}"
                f"{perhaps(name, known)}"
            )
        for call in recording.calls:
            for number in call.outputs if call.name == module else ():
                size = recording.values[number].array.size
                chosen[number] = [p for p in places if tape.values[p].size == size]
        if not any(chosen[n] for c in recording.calls if c.name == module for n in c.outputs):
            sizes = sorted({tape.values[place].shape for place in places})
            raise UserError(
                f"--pair {module}={name}: no value of {name} has the size of the output of "
                f"{module}, only shapes {sizes}"
            )
    return chosen


def leaving(tape: Tape, name: str) -> list[int]:
    """The values that are made at a place of this name and used elsewhere or returned."""
    line = re.fullmatch(r".*\.py:\d+", name) is not None
    inside = {
        place.index
        for place in tape.places
        if place.inputs
        and (
            f"/{place.line}".endswith(f"/{name}")
            if line
            else any(f"/{part}/" in f"/{place.scope}/" for part in (name, f"nnx:{name}"))
        )
    }
    used = {source for place in tape.places if place.index not in inside for source in place.inputs}
    return sorted(inside & (used | set(tape.outputs)))
