"""What a comparison finds: faults, and the modules of the original with their errors."""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Fault:
    """One place where the two sides part by a fault of its own."""

    torch: str
    """The PyTorch module; empty for the model itself."""
    jax: str | None
    """The place in the port: the scope of its operation, or None."""
    quantity: str
    """output, input_grad, param_grad, weights."""
    error: float
    bound: float
    cause: str | None
    evidence: str
    torch_line: str = ""
    jax_line: str = ""

    def as_json(self) -> dict[str, Any]:
        """The fault with the keys of the JSON form."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class Layer:
    """A module of the original, and where the port makes its output."""

    torch: str
    """Its name; empty for the model itself."""
    kind: str
    """Its class."""
    jax: str | None = None
    """The module of the port, else the line; None if the port has no such value."""
    error: float = math.nan
    """Of its output as the port runs; the worst of several. NaN if it was not found."""
    own: float = math.nan
    """The same on PyTorch's values."""
    cause: str | None = None
    """Empty for a fault without a known cause, None where there is no fault."""

    @property
    def found(self) -> bool:
        """Whether the port has its output."""
        return not math.isnan(self.error)

    def at_fault(self, fault: Fault) -> "Layer":
        """The same with a fault of its own."""
        layer = dataclasses.replace(self, jax=fault.jax or self.jax, cause=fault.cause or "")
        if fault.quantity != "output":
            return layer
        error, own = np.fmax(self.error, fault.error), np.fmax(self.own, fault.error)
        return dataclasses.replace(layer, error=error, own=own)


def with_faults(layers: Sequence[Layer], faults: Sequence[Fault]) -> list[Layer]:
    """The layers in their order, each with the first of its faults; one that never ran at the end.

    The parts of `MultiheadAttention` hold parameters and are not called.
    """
    found = {layer.torch: layer for layer in layers}
    for fault in faults[::-1]:
        found[fault.torch] = found.get(fault.torch, Layer(fault.torch, "")).at_fault(fault)
    return list(found.values())


def grouped(faults: Sequence[Fault]) -> list[list[Fault]]:
    """Faults that repeat over layers together: names that differ in numbers alone, one cause."""
    groups: dict[tuple, list[Fault]] = {}
    for fault in faults:
        key = (re.sub(r"\d+", "*", fault.torch), fault.quantity, fault.cause)
        groups.setdefault(key, []).append(fault)
    return list(groups.values())
