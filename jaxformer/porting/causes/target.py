"""What a planted fault has to give: the port's values in place of some outputs of a graph."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jaxformer.porting.causes.graph import Graph, equal, tensors_of


class Target:
    """What the port has in place of some of the outputs of a graph."""

    def __init__(self, pairs: Sequence[tuple[int, Tensor, Tensor]]) -> None:
        self.pairs = pairs
        self.size = math.sqrt(sum(float(_finite(theirs).square().sum()) for _, theirs, _ in pairs))

    def error(self, outputs: Sequence[Any]) -> float:
        """The distance of `outputs` from the port's, relative to PyTorch's; inf if they misfit."""
        difference = self.difference(outputs)
        return math.inf if difference is None else float(torch.linalg.vector_norm(difference))

    def difference(self, outputs: Sequence[Any]) -> Tensor | None:
        """`outputs` less the port's, relative to the size of PyTorch's; None if they misfit."""
        parts = []
        for i, _, port in self.pairs:
            value = outputs[i]
            if not isinstance(value, Tensor) or value.shape != port.shape:
                return None
            value = value.double()
            if not torch.equal(torch.isfinite(value), torch.isfinite(port)):
                return None
            parts.append((_finite(value) - _finite(port)).flatten())
        return torch.cat(parts) / (self.size or 1.0)


def _finite(value: Tensor) -> Tensor:
    return torch.nan_to_num(value.double(), nan=0.0, posinf=0.0, neginf=0.0)


def target_of(graph: Graph, theirs: Any, port: Any) -> Target | None:
    values = _flat(port)
    wanted = tensors_of(theirs)
    if len(values) != len(wanted):
        values = [v for v in values if v is not None]
    pairs: list[tuple[int, Tensor, Tensor]] = []
    taken: set[int] = set()
    for tensor, mine in zip(wanted, values, strict=False):
        if mine is None or not tensor.is_floating_point():
            continue
        found = torch.from_numpy(np.array(mine, dtype=np.float64))
        if found.shape != tensor.shape:
            continue
        for i, ref in enumerate(graph.outputs):
            value = graph.value(ref)
            if i not in taken and value.shape == tensor.shape:
                close = equal(value, tensor.detach())
                if close:
                    taken.add(i)
                    pairs.append((i, tensor.detach(), found))
                    break
    return Target(pairs) if pairs else None


def _flat(port: Any) -> list[Any]:
    if port is None or isinstance(port, np.ndarray | Tensor) or np.isscalar(port):
        return [port]
    if isinstance(port, Mapping):
        return [leaf for value in port.values() for leaf in _flat(value)]
    if isinstance(port, tuple | list):
        return [leaf for value in port for leaf in _flat(value)]
    return [np.asarray(port)]


def shown_by_outputs(target: Target) -> Iterator[tuple[float, str, str]]:
    """Causes that the outputs alone show: dropout, a scale."""
    if len(target.pairs) != 1:
        return
    _, theirs, port = target.pairs[0]
    a, b = theirs.double().flatten(), port.flatten()
    if a.numel() < 8 or not bool(torch.isfinite(a).all() and torch.isfinite(b).all()):
        return
    dropped = (b == 0) & (a != 0)
    kept = ~dropped & (a != 0)
    if bool(dropped.any()) and int(kept.sum()) > 3:
        ratios = b[kept] / a[kept]
        c = float(ratios.median())
        if c > 1 and bool((ratios - c).abs().max() <= 1e-5 * c):
            error = float((ratios - c).abs().max())
            share = float(dropped.double().mean())
            yield error, "dropout-on", f"{share:.0%} of the values are 0, the others times {c:.4g}"
    scale = float((a * b).sum() / (a * a).sum())
    error = float(torch.linalg.vector_norm(b - scale * a) / torch.linalg.vector_norm(a))
    if scale and abs(scale - 1) > 1e-9:
        yield error, "output-scale", f"the output times {scale:.6g}"
