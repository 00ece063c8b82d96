"""The first module at which two models diverge, for module trees with equal attribute names.

Both models run once under `trace`, and every module call of one is compared with the same call of
the other. The module at fault is the innermost one whose inputs agree and whose outputs differ;
backwards it is the innermost one whose output gradients agree and whose input or parameter
gradients differ. What a model computes between its modules, such as a sum of embeddings, is no
module: it is named by the first module that reads its result, or `output` if there is none.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from flax import nnx

from jaxformer.porting.compare import (
    ZERO_GRADIENT,
    DType,
    Key,
    Quantity,
    Row,
    compare,
    relative_error,
)
from jaxformer.porting.trace import Call, Trace
from jaxformer.porting.trace_jax import trace_jax
from jaxformer.porting.trace_torch import trace_torch

OUTPUT = "output"
"""The layer of what a whole model returns."""


class Divergence(NamedTuple):
    """The first difference of two models."""

    layer: str
    """Path of the module at fault, or `output`."""
    quantity: Quantity
    """`output`, or the gradient that differs although all outputs agree."""
    rows: list[Row]
    """Every module's output and gradients, in the order of PyTorch's calls."""


def first_divergence(
    jax_model: nnx.Module,
    torch_model: torch.nn.Module,
    jax_inputs: Sequence[Any],
    torch_inputs: Sequence[Any],
    bound: float,
    dtype: DType = "float32",
) -> Divergence | None:
    """Run both models on their positional inputs; the first divergence, or None.

    The outputs of every module and the gradients with respect to its inputs and outputs are
    compared. Parameters are not, as their names and axes differ. A module that only one side has is
    skipped.

    Args:
        jax_model: any NNX module; it is not changed.
        torch_model: any PyTorch module; it is not changed.
        jax_inputs: positional arguments of the JAX model.
        torch_inputs: the same arguments for the PyTorch model.
        bound: the largest error of any tensor, see `jaxformer.porting.compare`.
        dtype: the type that both models compute in.

    Raises:
        UserError: see `trace_jax`.
    """
    ours = trace_jax(jax_model, jax_inputs, dtype, seed=0)
    theirs = trace_torch(torch_model, torch_inputs, dtype, seed=0)
    rows = compare(values(ours, theirs), values(theirs, ours), bound, dtype)
    fault = locate(ours, theirs, bound)
    return None if fault is None else Divergence(*fault, rows)


def values(trace: Trace, other: Trace) -> dict[Key, Any]:
    """Outputs and gradients of all calls of modules that both sides have, in the order they end."""
    found: dict[Key, Any] = {}
    for call in sorted(trace.calls, key=lambda call: call.end):
        if call.path not in other.modules:
            continue
        layer = call.path or OUTPUT
        name = f"{layer}#{call.number + 1}" if call.number else layer
        parts: list[tuple[Quantity, list[Any]]] = [
            ("output", call.outputs),
            ("input_grad", call.input_grads),
        ]
        for quantity, arrays in parts:
            for i, array in enumerate(arrays):
                found[Key(layer, quantity, f"{name}[{i}]" if i else name)] = array
        if not call.inputs and call.path:
            # Integer inputs have no gradient: that of the output takes its place.
            for array in call.output_grads:
                found[Key(layer, "input_grad", f"{name} output")] = array
    return found


def locate(
    ours: Trace,
    theirs: Trace,
    bound: float,
    param_grads: Mapping[str, tuple[Any, Any]] | None = None,
) -> tuple[str, Quantity] | None:
    """The module and the quantity in which the traces differ first, or None.

    Args:
        ours: the JAX side.
        theirs: the PyTorch side.
        bound: on the error of every array.
        param_grads: JAX's and PyTorch's gradient of each parameter, by JAX's path.
    """

    def agree(a: Sequence[Any], b: Sequence[Any]) -> bool:
        # Only what both sides pass is compared: the two may differ in masks, keys and flags.
        return all(relative_error(x, y) <= bound for x, y in zip(a, b, strict=False))

    pairs = _paired(ours, theirs)
    forward = _forward(pairs, agree)
    if forward is not None:
        return forward, "output"
    wrong_params = {
        owner_of(path)
        for path, (a, b) in (param_grads or {}).items()
        if relative_error(a, b, path.endswith(ZERO_GRADIENT)) > bound
    }
    return _backward(pairs, agree, wrong_params)


Agree = Callable[[Sequence[Any], Sequence[Any]], bool]
Pairs = list[tuple[Call | None, Call]]


def owner_of(param_path: str) -> str:
    """The module that holds a parameter: `blocks.0.mlp.up` for `blocks/0/mlp/up/kernel`."""
    return param_path.rpartition("/")[0].replace("/", ".")


def _paired(ours: Trace, theirs: Trace) -> Pairs:
    """PyTorch's calls in the order they began, each with the same call of JAX or None."""
    found = {(call.path, call.number): call for call in ours.calls}
    return [
        (found.get((call.path, call.number)), call)
        for call in theirs.calls
        if call.path in ours.modules
    ]


def _forward(pairs: Pairs, agree: Agree) -> str | None:
    for our, their in sorted(pairs, key=lambda pair: pair[1].end):
        if our is None:
            return their.path  # JAX never called it
        if agree(our.inputs, their.inputs) and not agree(our.outputs, their.outputs):
            if their.path:
                return their.path
            inner = (
                call.path
                for mine, call in pairs
                if mine is not None and not agree(mine.inputs, call.inputs)
            )
            return next(inner, OUTPUT)
    return None


def _backward(pairs: Pairs, agree: Agree, wrong_params: set[str]) -> tuple[str, Quantity] | None:
    latest = None  # the last module that receives a wrong gradient, if none is at fault
    for our, their in reversed(pairs):
        assert our is not None
        if not agree(our.output_grads, their.output_grads):
            latest = latest or their.path or OUTPUT
        elif not agree(our.input_grads, their.input_grads):
            return their.path or OUTPUT, "input_grad"
        elif their.path in wrong_params:
            return their.path, "param_grad"
    return None if latest is None else (latest, "input_grad")
