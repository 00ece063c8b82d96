"""The layers of a port inside one another, equal ones in a row as one."""

import dataclasses
import re
from collections.abc import Iterable, Sequence

import numpy as np

from jaxformer.porting.findings import Layer


@dataclasses.dataclass(frozen=True)
class Node:
    """A layer of the tree, or several equal ones in a row, with what is inside them."""

    label: str
    """Its name without that of the layer around it; `h.0-11` for twelve."""
    layer: Layer
    """The first of them, with the worst errors of all."""
    inside: tuple["Node", ...]
    status: str
    """agrees, inherits, fault, missing."""


def tree(layers: Sequence[Layer], bound: float, whole: bool = False) -> tuple[Node, ...]:
    """The layers inside one another, equal ones in a row as one unless `whole`.

    A container that is never called, such as a list of blocks, has no row: `h.0` is inside the
    model itself.
    """
    names = {layer.torch for layer in layers}
    inside: dict[str | None, list[Layer]] = {}
    for layer in layers:
        around: str | None = layer.torch
        while around is not None:
            around = around.rpartition(".")[0] if around else None
            if around in names:
                break
        inside.setdefault(around, []).append(layer)

    def nodes(around: str | None) -> tuple[Node, ...]:
        prefix = f"{around}." if around else ""
        here = tuple(
            Node(x.torch.removeprefix(prefix) or x.kind, x, nodes(x.torch), status(x, bound))
            for x in inside.get(around, [])
        )
        return here if whole else grouped(here)

    return nodes(None)


def status(layer: Layer, bound: float) -> str:
    """In one word."""
    if layer.cause is not None:
        return "fault"
    if not layer.found:
        return "missing"
    return "agrees" if layer.error <= bound else "inherits"


def grouped(nodes: Iterable[Node]) -> tuple[Node, ...]:
    """Neighbours that differ in numbers alone as one node."""
    found: list[list[Node]] = []
    for node in nodes:
        if found and _shape(found[-1][-1]) == _shape(node):
            found[-1].append(node)
        else:
            found.append([node])
    return tuple(_merged(group) for group in found)


def _shape(node: Node) -> tuple:
    """What equal layers have in common."""
    return re.sub(r"\d+", "*", node.label), *_content(node)


def _content(node: Node) -> tuple:
    inside = ((x.label, *_content(x)) for x in node.inside)
    return node.layer.kind, node.status, node.layer.cause, *inside


def _merged(group: Sequence[Node]) -> Node:
    first = group[0]
    if len(group) == 1:
        return first
    worst = dataclasses.replace(
        first.layer,
        error=np.fmax.reduce([node.layer.error for node in group]),
        own=np.fmax.reduce([node.layer.own for node in group]),
    )
    inside = tuple(map(_merged, zip(*(node.inside for node in group), strict=True)))
    return Node(_span(first.label, group[-1].label), worst, inside, first.status)


def _span(first: str, last: str) -> str:
    """`h.0-11` for h.0 and h.11."""
    pairs = zip(re.split(r"(\d+)", first), re.split(r"(\d+)", last), strict=True)
    return "".join(a if a == b else f"{a}-{b}" for a, b in pairs)
