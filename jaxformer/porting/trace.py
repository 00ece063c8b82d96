"""The record of a model at work: what goes in and out of every module, forwards and backwards.

`trace_jax` and `trace_torch` run an unmodified model once and return the same kind of record, so
that two of them can be compared call by call. Each module call holds its float inputs and outputs
and the gradients with respect to both: of an output, the gradient through everything that uses it;
of an input, the gradient through this module alone. A module whose output gradients are right and
whose input gradients are wrong is therefore itself wrong, whatever happens elsewhere.

The scalar that is differentiated is the sum of the float outputs times numbers drawn from a seed,
the same on both sides.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxformer.porting.compare import DType


class Call(NamedTuple):
    """One call of one module; the arrays are its float arguments and results, in order."""

    path: str
    """The module, such as `blocks.0.attention`; empty for the model itself."""
    number: int
    """0 for the module's first call, 1 for its second."""
    end: int
    """Position of the call's end among the ends of all calls."""
    inputs: list[Any]
    outputs: list[Any]
    input_grads: list[Any]
    output_grads: list[Any]


class Trace(NamedTuple):
    """All calls in the order they began, and the gradient of each parameter by its own path."""

    calls: list[Call]
    modules: set[str]
    """Paths of all modules, called or not."""
    param_grads: dict[str, Any]


def rounded(values: np.ndarray, dtype: DType) -> np.ndarray:
    """The nearest numbers of a type, kept in float64."""
    if dtype == "float64":
        return values
    return values.astype(np.float32).astype(jnp.dtype(dtype)).astype(np.float64)


def output_weights(
    shapes: Sequence[tuple[int, ...]], dtype: DType, seed: int
) -> Iterator[np.ndarray]:
    """The factors of the float outputs, of norm near 1.

    The size of the gradients then depends little on the size of the output.
    """
    rng = np.random.default_rng(seed)
    for shape in shapes:
        scale = 2.0 ** -round(math.log2(max(math.prod(shape), 1)) / 2)  # exact in every type
        yield scale * rounded(rng.standard_normal(shape), dtype)
