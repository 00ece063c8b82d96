"""Changes that make a run fit: each is compiled and measured, none is guessed.

    fsdp           the copies of the model become one copy whose parameters are shared
    remat          each block's activations are computed twice instead of kept
    accumulation   the batch in slices: the fewest that fit

First each by itself; if none is enough, the first two together, and slices on top of them.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from jaxformer.config import MeshConfig, RunConfig
from jaxformer.planning.plan import Plan

Planner = Callable[[RunConfig], Plan]


@dataclasses.dataclass(frozen=True)
class Suggestion:
    """Flags to add, and the plan that they lead to."""

    flags: str
    plan: Plan
    fits: bool


def suggestions(plan: Plan, make: Planner, fits: Callable[[Plan], bool]) -> Iterator[Suggestion]:
    """Changes to a run that does not fit, each with its own plan, until some are enough."""
    known: dict[RunConfig, Plan] = {}

    def tried(flags: str, config: RunConfig) -> Suggestion:
        if config not in known:
            known[config] = make(config)
        return Suggestion(flags, known[config], fits(known[config]))

    changes = (_sharded, _again)
    singles = [tried(*found) for change in changes if (found := change(plan, plan.config))]
    yield from singles
    sliced = _fewest_slices(plan, plan.config, "", tried)
    yield from sliced
    if not singles or any(one.fits for one in (*singles, *sliced)):
        return
    flags, config = "", plan.config
    for change in changes:
        if found := change(plan, config):
            flags, config = f"{flags} {found[0]}".strip(), found[1]
    together = tried(flags, config)
    if len(singles) > 1:
        yield together
    if not together.fits:
        yield from _fewest_slices(plan, config, flags, tried)


def _sharded(plan: Plan, config: RunConfig) -> tuple[str, RunConfig] | None:
    """One copy of the model in the place of several: the flags, and what they make."""
    ways, tensor = plan.mesh["data"] * plan.mesh["fsdp"], plan.mesh["tensor"]
    if plan.mesh["data"] == 1:
        return None
    mesh = MeshConfig(data=1, fsdp=ways, tensor=tensor)
    return f"--mesh.data 1 --mesh.fsdp {ways}", dataclasses.replace(config, mesh=mesh)


def _again(plan: Plan, config: RunConfig) -> tuple[str, RunConfig] | None:
    """Activations computed again: the flag, and what it makes."""
    if config.model.remat != "none":
        return None
    model: Any = dataclasses.replace(config.model, remat="full")
    return "--model.remat full", dataclasses.replace(config, model=model)


def _fewest_slices(
    plan: Plan, config: RunConfig, flags: str, tried: Callable[[str, RunConfig], Suggestion]
) -> list[Suggestion]:
    """The smallest accumulation that fits, else the largest that there is, else nothing.

    More slices need less memory, so that bisection finds the fewest in few compilations.
    """

    def sliced(number: int) -> Suggestion:
        text = f"{flags} --accumulation {number}".strip()
        return tried(text, dataclasses.replace(config, accumulation=number))

    numbers = slice_numbers(plan)
    if not numbers:
        return []
    best = sliced(numbers.pop())
    if not best.fits:
        return [best]
    low, high = 0, len(numbers)
    while low < high:
        middle = (low + high) // 2
        found = sliced(numbers[middle])
        if found.fits:
            best, high = found, middle
        else:
            low = middle + 1
    return [best]


def slice_numbers(plan: Plan) -> list[int]:
    """Numbers of slices above the plan's own into which its batch can be cut, in order.

    Every slice has as many rows for every device, so that the batch stays as it is. A translation's
    batches of other lengths keep to their budget of tokens, and may lose a few rows.
    """
    rows, ways = plan.batch_shape[0], plan.mesh["data"] * plan.mesh["fsdp"]
    more = range(plan.config.accumulation + 1, rows // ways + 1)
    return [number for number in more if rows % (ways * number) == 0]
