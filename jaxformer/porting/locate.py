"""The first layer at which two models part, for any two module trees with equal attribute names.

Both models run once under `trace`; every module call of one is laid beside that of the other. The
layer to blame is the innermost module whose inputs agree and whose outputs part. Going backwards it
is the innermost module whose output gradients agree and whose input or parameter gradients part.
What the model itself does between its modules, such as adding embeddings, is no module: it is named
by the first module that sees its result, or `output` if that is the end.
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
    all_ok,
    first_failure,
    judge,
    relative_error,
)
from jaxformer.porting.trace import Call, Trace, trace_jax, trace_torch

OUTPUT = "output"
"""The layer of what a whole model returns."""


class Divergence(NamedTuple):
    """Where two models part."""

    layer: str
    """Path of the module to blame, or `output`."""
    quantity: Quantity
    """`output`, or the gradient that parts although all outputs agree."""
    rows: list[Row]
    """Every module's output and gradients, in the order of PyTorch's calls."""


class Comparison(NamedTuple):
    """What a proof found: all that was measured, and the layer to blame if something failed."""

    rows: list[Row]
    layer: str | None

    @classmethod
    def of(cls, rows: list[Row]) -> "Comparison":
        """Blames the layer of the first row that failed."""
        return cls(rows, first_failure(rows))

    @property
    def ok(self) -> bool:
        """Whether something was measured and all of it is in bounds."""
        return all_ok(self.rows)


def first_divergence(
    jax_model: nnx.Module,
    torch_model: torch.nn.Module,
    jax_inputs: Sequence[Any],
    torch_inputs: Sequence[Any],
    bound: float,
    dtype: DType = "float32",
) -> Divergence | None:
    """Run both models on their positional inputs and name the first layer that parts, or None.

    Parameters are not compared, as their names and axes differ: the gradients with respect to every
    module's inputs and outputs are. A module that only one side has is passed over.

    Raises:
        UserError: see `trace_jax`.
    """
    ours = trace_jax(jax_model, jax_inputs, dtype, seed=0)
    theirs = trace_torch(torch_model, torch_inputs, dtype, seed=0)
    rows = judge(values(ours, theirs), values(theirs, ours), bound, dtype, "")
    fault = blame(ours, theirs, bound)
    return None if fault is None else Divergence(*fault, rows)


def values(trace: Trace, other: Trace) -> dict[Key, Any]:
    """Outputs and gradients of the calls of modules that both sides have, in the order they end."""
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
            # Integers in, so no gradient there: what comes out stands for it.
            for array in call.output_grads:
                found[Key(layer, "input_grad", f"{name} output")] = array
    return found


def blame(
    ours: Trace,
    theirs: Trace,
    bound: float,
    param_grads: Mapping[str, tuple[Any, Any]] | None = None,
) -> tuple[str, Quantity] | None:
    """The layer and the quantity in which the traces part first, or None.

    Args:
        ours: the JAX side.
        theirs: the PyTorch side.
        bound: on the error of every array.
        param_grads: the gradients of both sides by JAX's path of the parameter.
    """

    def agree(a: Sequence[Any], b: Sequence[Any]) -> bool:
        # Only what both sides pass is compared: masks, keys and flags differ by design.
        return all(relative_error(x, y) <= bound for x, y in zip(a, b, strict=False))

    pairs = _paired(ours, theirs)
    forward = _forward(pairs, agree)
    if forward is not None:
        return forward, "output"
    parted: dict[str, bool] = {}
    for path, (a, b) in (param_grads or {}).items():
        owner = owner_of(path)
        true_zero = path.endswith(ZERO_GRADIENT)
        parted[owner] = parted.get(owner, False) or relative_error(a, b, true_zero) > bound
    return _backward(pairs, agree, parted)


Agree = Callable[[Sequence[Any], Sequence[Any]], bool]
Pairs = list[tuple[Call | None, Call]]


def owner_of(param_path: str) -> str:
    """The module that holds a parameter: `blocks/0/mlp/up/kernel` is of `blocks.0.mlp.up`."""
    return param_path.rpartition("/")[0].replace("/", ".")


def _paired(ours: Trace, theirs: Trace) -> Pairs:
    """PyTorch's calls as they began, each with JAX's call of the same module, if there is one."""
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


def _backward(
    pairs: Pairs, agree: Agree, parted: Mapping[str, bool]
) -> tuple[str, Quantity] | None:
    wrong = None
    for our, their in reversed(pairs):
        assert our is not None
        if not agree(our.output_grads, their.output_grads):
            wrong = wrong or their.path or OUTPUT  # the last one, as none was blamed so far
        elif not agree(our.input_grads, their.input_grads):
            return their.path or OUTPUT, "input_grad"
        elif parted.get(their.path, False):
            return their.path, "param_grad"
    return None if wrong is None else (wrong, "input_grad")
