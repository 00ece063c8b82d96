"""The search for the cause of a difference: plant each known fault in PyTorch's module.

The fault whose output is the port's is the cause. The port itself is never changed.
"""

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from jaxformer.porting.causes.graph import Edits, Graph
from jaxformer.porting.causes.record import record
from jaxformer.porting.causes.sites import Mutant, Number, mutants
from jaxformer.porting.causes.table import GENERAL, OWN, SPECIFIC, Row
from jaxformer.porting.causes.target import Target, shown_by_outputs, target_of
from jaxformer.porting.layouts import EXTREME

Inputs = tuple[Sequence[Any], Mapping[str, Any]]

ROUNDING = 3e-6
"""A fault explains a difference if it leaves at most this, relative to PyTorch's output, """
VANISHED = 1 / 30
"""and at most this share of the difference: parts of a port may compute in float32."""
EQUALLY = 100.0
"""Faults whose residuals differ by no more than this factor explain a difference equally well."""
FLOOR = 1e-12
"""Residuals below this are rounding of float64."""
STEPS = 12
"""Gauss-Newton steps in the logarithm of an unknown number."""
MORE = 200
"""Mutants that are tried after one explains the difference, for other words and the runner-up."""
MOST_CALLS = 500_000
"""Calls of all mutants that are tried in one graph: short modules try all, long recurrences few."""

UNFIT = (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError, AssertionError)
"""What a mutant raises that does not fit its place: other shapes, other arguments."""


class Cause(NamedTuple):
    """Why a port's output differs."""

    word: str
    """One of the words of `jaxformer divergence`."""
    residual: float
    """The error of the port against PyTorch with the fault planted."""
    runner_up: float
    """The smallest such error of any fault with another word; inf if there is none."""
    evidence: str
    """The fault in words, with the errors before and after, and other words that fit as well."""
    owners: tuple[str, ...] = ()
    """The modules in which it is, by their names in the recorded one."""


@dataclass(frozen=True)
class Context:
    """The whole model, for faults that only it shows: its inputs and what both sides return."""

    inputs: Inputs
    theirs: Any
    port: Any


def name_cause(
    model: nn.Module,
    name: str,
    inputs: Inputs,
    theirs: Any,
    port: Any,
    *,
    context: Context | None = None,
    least: float = FLOOR,
) -> Cause | None:
    """The fault that makes the module `name` of `model` give the port's output, or None.

    Args:
        model: the PyTorch model, in float64 and eval mode.
        name: the dotted name of the module at fault; "" is the model itself.
        inputs: the positional and keyword arguments that it was called with.
        theirs: its output, a tensor or a structure of tensors.
        port: the port's values in the layout of `theirs`, None where there is none.
        context: the whole model, which is searched if the module itself shows no cause.
        least: outputs that differ by less show nothing.
    """
    with _one_thread():
        return _name_cause(model, name, inputs, theirs, port, context, least)


def name_stretch(
    model: nn.Module,
    name: str,
    inputs: Inputs,
    known: Sequence[np.ndarray],
    theirs: np.ndarray,
    port: np.ndarray,
) -> Cause | None:
    """The fault between values that are right and one that the port has wrong, or None.

    Args:
        model: the PyTorch model, in float64 and eval mode.
        name: the module whose run makes that value; "" is the model itself.
        inputs: the positional and keyword arguments that it was called with.
        known: the values that are right, by PyTorch.
        theirs: the value that the port has wrong, by PyTorch.
        port: what the port has in its place.
    """
    with _one_thread():
        graph = record(model.get_submodule(name) if name else model, inputs)
        stretch = graph.stretch([torch.from_numpy(x) for x in known], torch.from_numpy(theirs))
        port = np.where(np.abs(theirs) < EXTREME, port, theirs)  # what a mask fills in is no fault
        found = explain(stretch, torch.from_numpy(theirs), port, name) if stretch else None
        return _within(found, name)


def _within(cause: Cause | None, name: str) -> Cause | None:
    """A cause in a module, with the names that its places have in the model."""
    if cause is None or not name:
        return cause
    return cause._replace(owners=tuple(f"{name}.{owner}".strip(".") for owner in cause.owners))


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Thousands of small calls: handing each to several threads takes longer than computing it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _name_cause(
    model: nn.Module,
    name: str,
    inputs: Inputs,
    theirs: Any,
    port: Any,
    context: Context | None,
    least: float,
) -> Cause | None:
    graph = record(model.get_submodule(name) if name else model, inputs)
    cause = _within(explain(graph, theirs, port, name, least=least), name)
    if cause is None and context is not None and name:
        whole = record(model, context.inputs)
        own = type(model.get_submodule(name)).__name__
        alike = {n for n, m in model.named_modules() if type(m).__name__ == own}
        parent = name.rpartition(".")[0]
        for place, owners in (
            (name, {name}),
            (parent or "the model", {parent}),
            (f"every {own}", alike),
        ):
            cause = explain(whole, context.theirs, context.port, place, owners, least)
            if cause is not None:
                return cause
    return cause


def explain(
    graph: Graph,
    theirs: Any,
    port: Any,
    place: str = "",
    owners: Iterable[str] | None = None,
    least: float = FLOOR,
) -> Cause | None:
    """The fault of `graph` under which its outputs are those of the port, or None.

    Args:
        graph: the recorded module.
        theirs: what it returned.
        port: what the port has instead.
        place: its name, for the evidence.
        owners: if given, only calls of these modules, or of modules inside them, are changed.
        least: outputs that differ by less show nothing.
    """
    target = target_of(graph, theirs, port)
    if target is None:
        return None
    before = target.error(graph.evaluate({}))
    if not before > least:
        return None
    found: list[tuple[float, int, str, str]] = []
    planted: dict[int, Edits] = {}
    order = 0
    for rows in (SPECIFIC, GENERAL):
        count, explained, more = 0, False, 0
        for word, mutant in _all_mutants(graph, rows):
            if explained and not mutant.everywhere:
                continue
            more += explained
            if more > MORE:
                break
            edits = mutant.edits
            edits = edits.make(edits.starts[0]) if isinstance(edits, Number) else edits
            if owners is not None and not _inside(graph, edits, owners):
                continue
            count += len(graph.calls) * (STEPS if isinstance(mutant.edits, Number) else 1)
            if count > MOST_CALLS:
                break
            order += 1
            try:
                error, what, edits = _tried(graph, target, mutant, before)
            except UNFIT:
                continue
            if error < before:
                found.append((error, order, word, what))
                if error <= _limit(before):
                    explained, planted[order] = True, edits
        for error, word, what in shown_by_outputs(target):
            order += 1
            found.append((error, order, word, what))
        winner = _winner(found, before, place)
        if winner is not None:
            order, cause = winner
            if rows is GENERAL or cause.word not in OWN or order not in planted:
                return cause
            return cause._replace(owners=_owners(graph, target, planted[order], _limit(before)))
    return None


def _owners(graph: Graph, target: Target, edits: Edits, limit: float) -> tuple[str, ...]:
    """The modules without whose edits the port's output is not reached."""
    found = dict.fromkeys(graph[index].owner for index in edits if index < len(graph.calls))
    for owner in list(found):
        rest = {i: e for i, e in edits.items() if i >= len(graph.calls) or graph[i].owner != owner}
        if len(found) > 1 and target.error(graph.evaluate(rest)) <= limit:
            edits = rest
            del found[owner]
    return tuple(found)


def _tried(graph: Graph, target: Target, mutant: Mutant, before: float) -> tuple[float, str, Edits]:
    """The error of a mutant, what it is and its edits, with its number if it has one."""
    edits = mutant.edits
    if not isinstance(edits, Number):
        return target.error(graph.evaluate(edits)), mutant.what, edits
    make = edits.make

    def at(u: float) -> Tensor | None:
        return target.difference(graph.evaluate(make(math.exp(u))))

    def norm(r: Tensor | None) -> float:
        return math.inf if r is None else float(torch.linalg.vector_norm(r))

    u = min((math.log(p) for p in edits.starts), key=lambda u: norm(at(u)))
    low, high = math.log(min(edits.starts) / 1e3), math.log(max(edits.starts) * 1e3)
    residual = at(u)
    best = norm(residual)
    for _ in range(STEPS if best < 2 * before else 0):
        near = at(u + 1e-5)
        if residual is None or near is None:
            break
        slope = (near - residual) / 1e-5
        size = float(slope.square().sum())
        step = -float((slope * residual).sum()) / size if size else 0.0
        step = max(-2.0, min(2.0, step))
        moved = at(u + step)
        if not norm(moved) < best or not low < u + step < high:
            break
        u, residual, best = u + step, moved, norm(moved)
    return best, f"{mutant.what} {math.exp(u):.5g}", make(math.exp(u))


def _all_mutants(graph: Graph, rows: Iterable[Row]) -> Iterator[tuple[str, Mutant]]:
    for word, fault in rows:
        try:
            for mutant in mutants(fault(graph)):
                yield word, mutant
        except UNFIT:
            continue


def _inside(graph: Graph, edits: Edits, owners: Iterable[str]) -> bool:
    """Whether the edited calls belong to modules of these names or inside them."""
    return all(
        index >= len(graph.calls)
        or any(
            not owner or graph[index].owner == owner or graph[index].owner.startswith(f"{owner}.")
            for owner in owners
        )
        for index in edits
    )


def _limit(before: float) -> float:
    return min(ROUNDING, VANISHED * before)


def _winner(
    found: list[tuple[float, int, str, str]], before: float, place: str
) -> tuple[int, Cause] | None:
    explaining = sorted(f for f in found if f[0] <= _limit(before))
    if not explaining:
        return None
    best = explaining[0][0]
    equal = [f for f in explaining if f[0] <= EQUALLY * best + FLOOR]
    error, order, word, what = min(equal, key=lambda f: f[1])
    others = list(dict.fromkeys(f[2] for f in equal if f[2] != word))
    left = [f for f in found if f[2] != word and f not in equal]
    runner_up, _, second, _ = min(left, default=(math.inf, 0, "", ""))
    evidence = f"{what}{f' in {place}' if place and place not in what else ''}: "
    evidence += f"the error falls from {before:.1e} to {error:.1e}"
    if second:
        evidence += f"; next {second}, {runner_up:.1e}"
    if others:
        evidence += f"; {', '.join(others)} would explain it too"
    return order, Cause(word, error, runner_up, evidence)
