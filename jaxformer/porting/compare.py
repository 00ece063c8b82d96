"""The measure of equality and its bounds: what "proven equal to PyTorch" means in this project.

The measure of a tensor is the normwise relative error ||a - b|| / ||b||, in float64, b the PyTorch
value. A b of true zeros is compared absolutely: ||a - b||. Integers and booleans are counted: the
measure is the number of entries that differ. Another shape, another kind of number, or anything
that is not finite is an infinite error.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import torch

DType = Literal["float64", "float32", "bfloat16"]
Quantity = Literal["output", "input_grad", "param_grad", "update", "dropout", "tokens", "resume"]
Scope = Literal["layer", "model", "state", "tokens"]

BOUNDS: Mapping[tuple[Scope, DType], float | None] = {
    ("layer", "float64"): 1e-13,
    ("layer", "float32"): 3e-6,
    ("model", "float64"): 1e-12,
    ("model", "float32"): 2e-5,
    ("state", "float64"): 1e-9,
    ("state", "float32"): None,
    ("tokens", "float64"): 0.0,
    ("tokens", "float32"): None,
}
"""The one table of bounds: `layer` one layer and its gradients, `model` a whole model and its,
`state` parameters, moments and losses after 100 optimizer steps with dropout on, `tokens` decoded
tokens. None is measured and reported, not judged: in float32 rounding alone moves an optimizer's
path and may flip a near tie between two tokens. What must be equal bit for bit has the bound 0."""

BFLOAT16_RATIO = 1.25
"""In bfloat16 the judge is the float64 truth: JAX's error is at most this times PyTorch's own."""

ZERO_GRADIENT = ("key/bias",)
"""Endings of the parameters whose gradient is truly zero: a key bias moves all scores of a query
alike, and softmax does not see it. What either side computes there is rounding noise, compared
absolutely; Adam turns the noise into steps, so updates of these parameters are left out."""


class Key(NamedTuple):
    """What a value is: the layer it belongs to, the quantity, and the path of the value itself."""

    layer: str
    quantity: Quantity
    path: str


Values = Mapping[Key, Any]


class Row(NamedTuple):
    """One measured value; `bound` is None where the error is reported and not judged."""

    model: str
    layer: str
    quantity: Quantity
    path: str
    dtype: DType
    error: float
    bound: float | None
    ok: bool


def relative_error(ours: Any, theirs: Any, true_zero: bool = False) -> float:
    """The error of `ours` against `theirs`, jax, torch or numpy arrays; 0 is equality."""
    a, b = as_numpy(ours), as_numpy(theirs)
    if a.shape != b.shape or a.dtype.kind != b.dtype.kind:
        return math.inf
    if a.dtype.kind != "f":
        return float(np.count_nonzero(a != b))
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return math.inf
    difference, size = np.linalg.norm(np.ravel(a - b)), np.linalg.norm(np.ravel(b))
    return float(difference if true_zero or size == 0.0 else difference / size)


def as_numpy(value: Any) -> np.ndarray:
    """A numpy array; floating point of any width becomes float64."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        return (value.double() if value.is_floating_point() else value).numpy()
    array = np.asarray(value)
    if jax.dtypes.issubdtype(array.dtype, np.floating):  # knows bfloat16, which numpy does not
        return array.astype(np.float64)
    return array


def judge(
    ours: Values,
    theirs: Values,
    bound: float | None,
    dtype: DType,
    model: str,
    truth: Values | None = None,
) -> list[Row]:
    """A row for each value of either side, in the order of `theirs`; one that a side lacks fails.

    In bfloat16 both sides are measured against `truth`, PyTorch's values in float64, and the bound
    is PyTorch's error times BFLOAT16_RATIO.
    """
    missing = [key for key in ours if key not in theirs]
    rows = []
    for key in [*theirs, *missing]:
        if key not in ours or key not in theirs:
            rows.append(Row(model, *key, dtype, math.inf, 0.0, False))
            continue
        true_zero = key.quantity != "output" and key.path.endswith(ZERO_GRADIENT)
        if truth is not None and true_zero:
            continue  # noise against noise: neither side's is the better
        if truth is None:
            error = relative_error(ours[key], theirs[key], true_zero)
            exact = as_numpy(theirs[key]).dtype.kind != "f"
            limit = 0.0 if exact and bound is not None else bound
        else:
            error = relative_error(ours[key], truth[key], true_zero)
            limit = BFLOAT16_RATIO * relative_error(theirs[key], truth[key], true_zero)
        rows.append(Row(model, *key, dtype, error, limit, limit is None or error <= limit))
    return rows


def first_failure(rows: Iterable[Row]) -> str | None:
    """The layer of the first row that is not ok."""
    return next((row.layer for row in rows if not row.ok), None)


def all_ok(rows: Sequence[Row]) -> bool:
    """Whether there are rows and each is ok: nothing measured is nothing proven."""
    return bool(rows) and all(row.ok for row in rows)
