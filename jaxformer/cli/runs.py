"""Runs on a command line, when there may be several."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from jaxformer.errors import UserError

RunPaths = Annotated[
    tuple[Path, ...],
    tyro.conf.Positional,
    tyro.conf.arg(metavar="RUN [RUN ...]", help_behavior_hint="(one or more)"),
]
"""The directories of one or more runs: `jaxformer plot RUN RUN`."""


def run_names(runs: Sequence[Path]) -> list[str]:
    """A name for each directory of a run: its last parts, as many as tell it from the others.

    Raises:
        UserError: when none is named, one is named twice, or is no directory.
    """
    if not runs:
        raise UserError("no run is named: name the --run-dir of one or more")
    for run in runs:
        if not run.is_dir():
            raise UserError(f"{run} is not a directory: name the --run-dir of a training run")
    places = [run.resolve() for run in runs]
    for number, place in enumerate(places):
        if place in places[:number]:
            raise UserError(f"{runs[number]} is named twice: name each run once")
    names = []
    for place in places:
        others = [other.parts for other in places if other != place]
        depth = 1
        while any(parts[-depth:] == place.parts[-depth:] for parts in others):
            depth += 1
        names.append("/".join(place.parts[-depth:]))
    return names
