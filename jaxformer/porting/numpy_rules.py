"""The operations of JAX in numpy: `RULES[primitive](params, *operands)`.

A tape is run operation by operation, where XLA would compile every operation for every shape.
What has no rule here, or operands of other types than float64, integers and booleans, goes to JAX.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy import special

Params = Mapping[str, Any]


def _round(p: Params, x: Any) -> Any:
    if int(p["rounding_method"]) == 1:  # to even
        return np.round(x)
    return np.trunc(x + np.copysign(0.5, x))


def _divide(p: Params, x: Any, y: Any) -> Any:
    if x.dtype.kind == "f":
        return np.divide(x, y)
    safe = np.where(y == 0, 1, y)
    return np.where(y == 0, -1, np.trunc(x / safe)).astype(x.dtype)


def _select(p: Params, which: Any, *cases: Any) -> Any:
    if len(cases) == 1:
        return cases[0]
    if len(cases) == 2:
        return np.where(which.astype(bool), cases[1], cases[0])
    return np.choose(np.broadcast_to(which, cases[0].shape), cases)


def _broadcast(p: Params, x: Any, *_: Any) -> Any:
    shape = [1] * len(p["shape"])
    for axis, size in zip(p["broadcast_dimensions"], x.shape, strict=True):
        shape[axis] = size
    return np.broadcast_to(x.reshape(shape), p["shape"])


def _iota(p: Params, *_: Any) -> Any:
    shape = [1] * len(p["shape"])
    shape[p["dimension"]] = -1
    row = np.arange(p["shape"][p["dimension"]]).astype(p["dtype"])
    return np.broadcast_to(row.reshape(shape), p["shape"])


def _pad(p: Params, x: Any, value: Any) -> Any:
    config = p["padding_config"]
    between = [inner for _, _, inner in config]
    if any(between):
        shape = [n + max(n - 1, 0) * k for n, k in zip(x.shape, between, strict=True)]
        spread = np.full(shape, value, x.dtype)
        spread[tuple(slice(None, None, k + 1) for k in between)] = x
        x = spread
    out = np.pad(x, [(max(a, 0), max(b, 0)) for a, b, _ in config], constant_values=value[()])
    ends = zip(out.shape, config, strict=True)
    return out[tuple(slice(max(-a, 0), n - max(-b, 0)) for n, (a, b, _) in ends)]


def _slice(p: Params, x: Any) -> Any:
    strides = p["strides"] or (1,) * x.ndim
    bounds = zip(p["start_indices"], p["limit_indices"], strides, strict=True)
    return x[tuple(slice(*bound) for bound in bounds)]


def _dynamic_slice(p: Params, x: Any, *starts: Any) -> Any:
    sizes = p["slice_sizes"]
    first = [_clamped(s, n - k) for s, n, k in zip(starts, x.shape, sizes, strict=True)]
    return x[tuple(slice(s, s + k) for s, k in zip(first, sizes, strict=True))]


def _dynamic_update(p: Params, x: Any, update: Any, *starts: Any) -> Any:
    first = [_clamped(s, n - k) for s, n, k in zip(starts, x.shape, update.shape, strict=True)]
    out = np.array(x)
    out[tuple(slice(s, s + k) for s, k in zip(first, update.shape, strict=True))] = update
    return out


def _clamped(start: Any, largest: int) -> int:
    return min(max(int(start), 0), largest)


def _dot_general(p: Params, x: Any, y: Any) -> Any:
    (cx, cy), (bx, by) = p["dimension_numbers"]
    fx = [a for a in range(x.ndim) if a not in cx and a not in bx]
    fy = [a for a in range(y.ndim) if a not in cy and a not in by]
    batch = [x.shape[a] for a in bx]
    inner = int(np.prod([x.shape[a] for a in cx], dtype=np.int64))
    left = x.transpose([*bx, *fx, *cx]).reshape(*batch, -1, inner) if x.size else x
    right = y.transpose([*by, *cy, *fy]).reshape(*batch, inner, -1) if y.size else y
    shape = [*batch, *(x.shape[a] for a in fx), *(y.shape[a] for a in fy)]
    if not (x.size and y.size):
        return np.zeros(shape, np.result_type(x, y))
    out = np.matmul(left, right).reshape(shape)
    return out.astype(p["preferred_element_type"]) if p.get("preferred_element_type") else out


def _reduced(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda p, x: function(x, axis=tuple(p["axes"]))


def _reduce_sum(p: Params, x: Any) -> Any:
    return np.sum(x, axis=tuple(p["axes"]), dtype=x.dtype)


def _extreme(function: Callable[..., Any], worst: float) -> Callable[..., Any]:
    def reduce(p: Params, x: Any) -> Any:
        if x.dtype.kind == "f":
            return function(x, axis=tuple(p["axes"]), initial=worst)
        return function(x, axis=tuple(p["axes"]))

    return reduce


def _arg(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda p, x: function(x, axis=p["axes"][0]).astype(p["index_dtype"])


def _cumulative(function: Callable[..., Any]) -> Callable[..., Any]:
    def rule(p: Params, x: Any) -> Any:
        if p["reverse"]:
            return np.flip(function(np.flip(x, p["axis"]), p["axis"]), p["axis"]).astype(x.dtype)
        return function(x, p["axis"]).astype(x.dtype)

    return rule


def _gather_rows(p: Params, x: Any, indices: Any) -> Any:
    """Rows of a table by their numbers, the form that an embedding has."""
    d, sizes = p["dimension_numbers"], tuple(p["slice_sizes"])
    simple = (
        tuple(d.start_index_map) == (0,)
        and tuple(d.collapsed_slice_dims) == (0,)
        and not getattr(d, "operand_batching_dims", ())
        and sizes == (1, *x.shape[1:])
        and tuple(d.offset_dims) == tuple(range(indices.ndim - 1, indices.ndim + x.ndim - 2))
    )
    if not simple:
        return NotImplemented
    rows = indices[..., 0]
    out = x[np.clip(rows, 0, x.shape[0] - 1)]
    beyond = (rows < 0) | (rows >= x.shape[0])
    if beyond.any() and "FILL" in str(p["mode"]).upper():
        if x.dtype.kind != "f":
            return NotImplemented
        out[beyond] = np.nan if p["fill_value"] is None else p["fill_value"]
    return out


def _sort(p: Params, *operands: Any) -> Any:
    axis, keys = p["dimension"], p["num_keys"]
    if keys != 1:
        return NotImplemented
    order = np.argsort(operands[0], axis=axis, kind="stable")
    return [np.take_along_axis(x, order, axis) for x in operands]


def _top_k(p: Params, x: Any) -> Any:
    axis = p.get("axis", x.ndim - 1)
    if axis not in (-1, x.ndim - 1):
        return NotImplemented
    order = np.argsort(-x, axis=-1, kind="stable")[..., : p["k"]]
    return [np.take_along_axis(x, order, -1), order.astype(np.int32)]


def _shift_right_logical(p: Params, x: Any, y: Any) -> Any:
    unsigned = np.dtype(f"u{x.dtype.itemsize}")
    return (x.view(unsigned) >> y.astype(unsigned)).view(x.dtype)


def _split(p: Params, x: Any) -> Any:
    return np.split(x, np.cumsum(p["sizes"])[:-1], axis=p["axis"])


def _expand(p: Params, x: Any) -> Any:
    return np.expand_dims(x, tuple(p["dimensions"]))


def _convolution(p: Params, x: Any, kernel: Any) -> Any:
    """A convolution, by PyTorch: XLA takes seconds to compile one."""
    d, rank = p["dimension_numbers"], x.ndim - 2
    if p["batch_group_count"] != 1 or rank not in (1, 2, 3):
        return NotImplemented
    x, kernel = x.transpose(d.lhs_spec), kernel.transpose(d.rhs_spec)
    for axis, dilation in enumerate(p["lhs_dilation"], start=2):
        if dilation != 1 and x.shape[axis]:
            shape = list(x.shape)
            shape[axis] = (shape[axis] - 1) * dilation + 1
            spread = np.zeros(shape, x.dtype)
            spread[(slice(None),) * axis + (slice(None, None, dilation),)] = x
            x = spread
    padding = [side for low, high in reversed(p["padding"]) for side in (low, high)]
    function = (F.conv1d, F.conv2d, F.conv3d)[rank - 1]
    out = function(
        F.pad(torch.from_numpy(np.array(x, order="C")), padding),
        torch.from_numpy(np.array(kernel, order="C")),
        stride=tuple(p["window_strides"]),
        dilation=tuple(p["rhs_dilation"]),
        groups=p["feature_group_count"],
    )
    return out.numpy().transpose(np.argsort(d.out_spec))


def _unary(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda p, x: function(x)


def _binary(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda p, x, y: function(x, y)


def _logical(bitwise: Callable[..., Any]) -> Callable[..., Any]:
    return lambda p, x, y: bitwise(x, y)


RULES: Mapping[str, Callable[..., Any]] = {
    **{
        name: _unary(getattr(np, function))
        for name, function in {
            "neg": "negative",
            "exp": "exp",
            "exp2": "exp2",
            "log": "log",
            "log1p": "log1p",
            "expm1": "expm1",
            "sin": "sin",
            "cos": "cos",
            "tan": "tan",
            "tanh": "tanh",
            "sqrt": "sqrt",
            "cbrt": "cbrt",
            "abs": "abs",
            "sign": "sign",
            "floor": "floor",
            "ceil": "ceil",
            "is_finite": "isfinite",
            "not": "invert",
            "square": "square",
            "asin": "arcsin",
            "acos": "arccos",
            "atan": "arctan",
            "sinh": "sinh",
            "cosh": "cosh",
            "asinh": "arcsinh",
            "acosh": "arccosh",
            "atanh": "arctanh",
        }.items()
    },
    **{
        name: _binary(getattr(np, function))
        for name, function in {
            "add": "add",
            "add_any": "add",
            "sub": "subtract",
            "mul": "multiply",
            "max": "maximum",
            "min": "minimum",
            "pow": "power",
            "atan2": "arctan2",
            "eq": "equal",
            "ne": "not_equal",
            "lt": "less",
            "le": "less_equal",
            "gt": "greater",
            "ge": "greater_equal",
            "and": "bitwise_and",
            "or": "bitwise_or",
            "xor": "bitwise_xor",
            "rem": "fmod",
            "shift_left": "left_shift",
            "shift_right_arithmetic": "right_shift",
        }.items()
    },
    "logistic": _unary(special.expit),
    "erf": _unary(special.erf),
    "erfc": _unary(special.erfc),
    "erf_inv": _unary(special.erfinv),
    "lgamma": _unary(special.gammaln),
    "digamma": _unary(special.digamma),
    "rsqrt": lambda p, x: 1.0 / np.sqrt(x),
    "integer_pow": lambda p, x: x ** float(p["y"]) if x.dtype.kind == "f" else x ** p["y"],
    "round": _round,
    "div": _divide,
    "shift_right_logical": _shift_right_logical,
    "clamp": lambda p, low, x, high: np.minimum(np.maximum(x, low), high),
    "select_n": _select,
    "copy": lambda p, x: x,
    "copy_p": lambda p, x: x,
    "stop_gradient": lambda p, x: x,
    "optimization_barrier": lambda p, *x: list(x),
    "convert_element_type": lambda p, x: x.astype(p["new_dtype"]),
    "broadcast_in_dim": _broadcast,
    "reshape": lambda p, x, *_: x.reshape(p["new_sizes"]),
    "transpose": lambda p, x: x.transpose(p["permutation"]),
    "squeeze": lambda p, x: np.squeeze(x, tuple(p["dimensions"])),
    "expand_dims": _expand,
    "rev": lambda p, x: np.flip(x, tuple(p["dimensions"])),
    "concatenate": lambda p, *x: np.concatenate(x, p["dimension"]),
    "pad": _pad,
    "slice": _slice,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update,
    "iota": _iota,
    "split": _split,
    "reduce_sum": _reduce_sum,
    "reduce_max": _extreme(np.max, -np.inf),
    "reduce_min": _extreme(np.min, np.inf),
    "reduce_prod": _reduced(np.prod),
    "reduce_and": _reduced(np.all),
    "reduce_or": _reduced(np.any),
    "argmax": _arg(np.argmax),
    "argmin": _arg(np.argmin),
    "cumsum": _cumulative(np.cumsum),
    "cumprod": _cumulative(np.cumprod),
    "cummax": _cumulative(np.maximum.accumulate),
    "cummin": _cumulative(np.minimum.accumulate),
    "cumlogsumexp": _cumulative(np.logaddexp.accumulate),
    "conv_general_dilated": _convolution,
    "dot_general": _dot_general,
    "gather": _gather_rows,
    "sort": _sort,
    "top_k": _top_k,
}
