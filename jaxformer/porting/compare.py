"""The measure of equality between a value of JAX and a value of PyTorch.

The error of a tensor is the normwise relative error ||a - b|| / ||b||, in float64, b the PyTorch
value. Against a b of true zeros it is absolute: ||a - b||. Between integers or booleans it is the
number of entries that differ. Another shape, another kind of number, or anything that is not
finite is an infinite error.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import torch

DType = Literal["float64", "float32", "bfloat16"]
Quantity = Literal["output", "input_grad", "param_grad", "update", "dropout", "tokens", "resume"]
ZERO_GRADIENT = ("key/bias",)
"""Endings of the parameters whose gradient is truly zero: a key bias shifts all scores of a query
by the same number, which softmax ignores. Both sides hold rounding noise there, so it is compared
absolutely. Adam turns the noise into steps, so updates of these parameters are left out. A key that
is rotated by its position has a bias of a true gradient, which is far from zero."""


class Key(NamedTuple):
    """Which value it is: its layer, its quantity and its own path."""

    layer: str
    quantity: Quantity
    path: str


Values = Mapping[Key, Any]


class Row(NamedTuple):
    """One measured value; `bound` is None where the error is reported without a verdict."""

    model: str
    layer: str
    quantity: Quantity
    path: str
    dtype: DType
    error: float
    bound: float | None
    ok: bool


def relative_error(ours: Any, theirs: Any, true_zero: bool = False) -> float:
    """The error of `ours` against `theirs`, jax, torch or numpy arrays; 0 means equal.

    `true_zero` says that `theirs` may be zero but for rounding: the error is then absolute, unless
    `theirs` is of size 1 or more.
    """
    a, b = as_numpy(ours), as_numpy(theirs)
    if a.shape != b.shape or a.dtype.kind != b.dtype.kind:
        return math.inf
    if a.dtype.kind != "f":
        return float(np.count_nonzero(a != b))
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return math.inf
    difference, size = np.linalg.norm(np.ravel(a - b)), np.linalg.norm(np.ravel(b))
    if true_zero or size == 0.0:
        size = np.maximum(size, 1.0)
    return float(difference / size)


def as_numpy(value: Any) -> np.ndarray:
    """A numpy array; floating point of any width becomes float64."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        return (value.double() if value.is_floating_point() else value).numpy()
    array = np.asarray(value)
    if jax.dtypes.issubdtype(array.dtype, np.floating):  # knows bfloat16, which numpy does not
        return array.astype(np.float64)
    return array


def compare(
    ours: Values,
    theirs: Values,
    bound: float | None,
    dtype: DType,
    model: str = "",
    truth: Values | None = None,
) -> list[Row]:
    """A row for each value of either side, in the order of `theirs`; one that a side lacks fails.

    Args:
        ours: JAX's values.
        theirs: PyTorch's values.
        bound: the largest error; None measures without a verdict. Integers and booleans must be
            equal under any bound.
        dtype: the type of the floats, for the rows.
        model: the name of the model, for the rows.
        truth: float64 values that both sides are measured against; JAX's error may then be at most
            `bound` times PyTorch's.
    """
    missing = [key for key in ours if key not in theirs]
    rows = []
    for key in [*theirs, *missing]:
        if key not in ours or key not in theirs:
            rows.append(Row(model, *key, dtype, math.inf, 0.0, False))
            continue
        true_zero = key.quantity != "output" and key.path.endswith(ZERO_GRADIENT)
        if truth is None:
            error = relative_error(ours[key], theirs[key], true_zero)
            exact = as_numpy(theirs[key]).dtype.kind != "f"
            limit = 0.0 if exact and bound is not None else bound
        elif true_zero:
            continue  # noise against noise: neither side is nearer to the truth
        else:
            error = relative_error(ours[key], truth[key])
            limit = None if bound is None else bound * relative_error(theirs[key], truth[key])
        rows.append(Row(model, *key, dtype, error, limit, limit is None or error <= limit))
    return rows


def all_ok(rows: Sequence[Row]) -> bool:
    """Whether there are rows and each is ok: no row proves nothing."""
    return bool(rows) and all(row.ok for row in rows)
