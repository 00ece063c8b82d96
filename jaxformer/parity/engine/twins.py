"""A module and its twin, run side by side: the engine of the proofs of layers and models."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import torch
from flax import nnx
from jaxtyping import Array, PyTree

from jaxformer.models.functional import abstract_model, flat_params, merge
from jaxformer.parity.engine.cases import Case, draw_params
from jaxformer.parity.engine.settings import arithmetic
from jaxformer.porting.compare import BOUNDS, Key, Quantity, Scope, as_numpy, judge
from jaxformer.porting.locate import Comparison, blame, owner_of, values
from jaxformer.porting.trace import Trace, trace_jax, trace_torch
from jaxformer.weights.convert import from_torch, to_torch
from jaxformer.weights.tables import Row as TableRow
from torchref import config as torch_config


class ModelPair(NamedTuple):
    """How to build a module and its twin, and which leaf is which tensor."""

    build: Callable[[Any, nnx.Rngs], nnx.Module]
    build_twin: Callable[[Any], torch.nn.Module]
    table: Sequence[TableRow]
    name: str = "layers"
    """What the report calls it."""

    def model(self, case: Case) -> Any:
        """The module in the type of the case, with parameters drawn for it."""
        graphdef, shapes = abstract_model(self.build, case.model_config)
        return merge(graphdef, draw_params(case, shapes))

    def twin(self, case: Case) -> torch.nn.Module:
        """The twin in the type of the case, with the same parameters."""
        _, shapes = abstract_model(self.build, case.model_config)
        return self.twin_with(case, draw_params(case, shapes))

    def twin_with(self, case: Case, params: PyTree[Array]) -> torch.nn.Module:
        """The twin in the type of the case, with these parameters."""
        tensors = to_torch(params, self.table)
        twin = self.build_twin(twin_config(case.model_config)).to(case.torch_dtype)
        twin.load_state_dict({name: torch.tensor(array) for name, array in tensors.items()})
        return twin

    def in_jax_names(self, case: Case, grads: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
        """PyTorch's gradients by the paths, and in the axes, of JAX's parameters."""
        _, shapes = abstract_model(self.build, case.model_config)
        like = jax.tree.map(lambda x: np.zeros(x.shape), shapes)
        arrays = {name: as_numpy(grad) for name, grad in grads.items()}
        return flat_params(from_torch(arrays, self.table, like))


def twin_config(config: Any) -> Any:
    """The twin's config of the same name, field for field but one: it keeps what it computes."""
    fields = dataclasses.asdict(config)
    fields.pop("remat", None)
    return getattr(torch_config, type(config).__name__)(**fields)


Inputs = Callable[[Case], tuple[Sequence[Any], Sequence[Any]]]
"""From a case to the positional arguments of both sides."""

Proof = Callable[[Case], Comparison]
"""A proof measures one subject on one case."""


def compare_twins(
    case: Case,
    twins: ModelPair,
    inputs: Inputs,
    scope: Scope,
    layer: str | None = None,
    quantity: Quantity | None = None,
) -> Comparison:
    """Run both sides, forwards and backwards, and measure every output and every gradient.

    Args:
        case: what to run.
        twins: how to build both sides.
        inputs: makes the arguments.
        scope: which bound holds.
        layer: name of all rows' layer, for a single layer; by default each module is its own.
        quantity: of all rows, instead of output, input_grad and param_grad.
    """
    bound = BOUNDS.get((scope, case.dtype))
    with arithmetic(case.dtype):
        ours = trace_jax(
            twins.model(case), inputs(case)[0], case.number_type, case.seed, jit=case.jit
        )
    theirs = _trace_twin(case, twins, inputs)
    our_values, their_values = values(ours, theirs), values(theirs, ours)
    truth = None
    if case.dtype == "bfloat16":
        exact = _trace_twin(case.truth, twins, inputs)
        truth = _named(_with_params(values(exact, ours), exact.param_grads), layer, quantity)
    our_grads, their_grads = ours.param_grads, theirs.param_grads
    rows = judge(
        _named(_with_params(our_values, our_grads), layer, quantity),
        _named(_with_params(their_values, their_grads), layer, quantity),
        bound,
        case.dtype,
        twins.name,
        truth,
    )
    if truth is not None or all(row.ok for row in rows):
        return Comparison.of(rows)
    assert bound is not None
    both = {path: (our_grads[path], their_grads[path]) for path in our_grads}
    fault = blame(ours, theirs, bound, both)
    return Comparison(rows, layer or (fault[0] if fault else None))


def compare_functions(
    case: Case,
    layer: str,
    function: Callable[..., Any],
    twin: Callable[..., Any],
    inputs: Inputs,
) -> Comparison:
    """`compare_twins` for functions without parameters, as the call of an empty module."""

    class Module(nnx.Module):
        def __call__(self, *args: Any) -> Any:
            return function(*args)

    class Twin(torch.nn.Module):
        def forward(self, *args: Any) -> Any:
            return twin(*args)

    twins = ModelPair(lambda config, rngs: Module(), lambda config: Twin(), ())
    return compare_twins(case, twins, inputs, "layer", layer)


def _trace_twin(case: Case, twins: ModelPair, inputs: Inputs) -> Trace:
    with arithmetic(case.dtype):
        trace = trace_torch(twins.twin(case), inputs(case)[1], case.number_type, case.seed)
        return trace._replace(param_grads=twins.in_jax_names(case, trace.param_grads))


def _with_params(values: dict[Key, Any], grads: dict[str, Any]) -> dict[Key, Any]:
    return values | {Key(owner_of(path), "param_grad", path): g for path, g in grads.items()}


def _named(values: dict[Key, Any], layer: str | None, quantity: Quantity | None) -> dict[Key, Any]:
    named = {}
    for key, value in values.items():
        path = f"{key.quantity} {key.path}" if quantity else key.path
        named[Key(layer or key.layer, quantity or key.quantity, path)] = value
    return named
