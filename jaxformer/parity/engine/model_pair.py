"""A module and its twin, run side by side: the engine of the proofs of layers and models."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import torch
from flax import nnx
from jaxtyping import Array, PyTree

from jaxformer.models.functional import abstract_model, flat_params, merge
from jaxformer.models.stacked import in_form_of, unstack_layers
from jaxformer.parity.bounds import BFLOAT16_RATIO, BOUNDS, Scope
from jaxformer.parity.engine.cases import Case, draw_params
from jaxformer.parity.engine.comparison import Comparison
from jaxformer.parity.engine.settings import arithmetic
from jaxformer.porting.compare import Key, Quantity, as_numpy, compare
from jaxformer.porting.locate import locate, owner_of, values
from jaxformer.porting.trace import Trace
from jaxformer.porting.trace_jax import trace_jax
from jaxformer.porting.trace_torch import trace_torch
from jaxformer.weights.convert import from_torch, to_torch
from jaxformer.weights.twin import TWIN
from torchref import config as torch_config


class ModelPair(NamedTuple):
    """How to build a module and its twin; the twin rule says which leaf is which tensor."""

    build: Callable[[Any, nnx.Rngs], nnx.Module]
    build_twin: Callable[[Any], torch.nn.Module]
    name: str = "layers"
    """The model's name in the report."""

    def draw(self, case: Case) -> tuple[nnx.GraphDef, PyTree[Array]]:
        """The module in the type of the case, as graph definition and drawn parameters."""
        graphdef, shapes = abstract_model(self.build, case.model_config)
        return graphdef, in_form_of(shapes, draw_params(case, unstack_layers(shapes)))

    def twin(self, case: Case, params: PyTree[Array]) -> torch.nn.Module:
        """The twin in the type of the case, with these parameters."""
        tensors = to_torch(params, TWIN)
        twin = self.build_twin(twin_config(case.model_config)).to(case.torch_dtype)
        twin.load_state_dict({name: torch.tensor(array) for name, array in tensors.items()})
        return twin


def in_jax_names(params: PyTree[Any], tensors: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """PyTorch's tensors, such as gradients, with the paths and axes of JAX's parameters.

    Each layer's paths are its own, stacked or not.
    """
    like = jax.tree.map(lambda x: np.zeros(x.shape), unstack_layers(params))
    arrays = {name: as_numpy(tensor) for name, tensor in tensors.items()}
    return flat_params(from_torch(arrays, TWIN, like))


def twin_config(config: Any) -> Any:
    """The twin's config of the same name, field for field, without what changes no value."""
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    for name in ("remat", "attention", "scan_layers"):
        fields.pop(name, None)
    parts = {name: twin_config(v) for name, v in fields.items() if dataclasses.is_dataclass(v)}
    return getattr(torch_config, type(config).__name__)(**fields | parts)


Inputs = Callable[[Case], tuple[Sequence[Any], Sequence[Any]]]
"""From a case to the positional arguments of both sides."""


def compare_pair(
    case: Case,
    pair: ModelPair,
    inputs: Inputs,
    scope: Scope,
    layer: str | None = None,
    quantity: Quantity | None = None,
) -> Comparison:
    """Run both sides, forwards and backwards, and measure every output and every gradient.

    Args:
        case: what to run.
        pair: how to build both sides.
        inputs: makes the arguments.
        scope: of the bound.
        layer: the layer of all rows, for a single layer; by default each module is its own layer.
        quantity: of all rows, instead of output, input_grad and param_grad.
    """

    def named(trace: Trace, other: Trace) -> dict[Key, Any]:
        return _named(_with_params(values(trace, other), trace.param_grads), layer, quantity)

    with arithmetic(case.dtype):
        model = merge(*pair.draw(case))
        ours = trace_jax(model, inputs(case)[0], case.number_type, case.seed, jit=case.jit)
    theirs = _trace_twin(case, pair, inputs)
    both = named(ours, theirs), named(theirs, ours)
    if case.dtype == "bfloat16":
        truth = named(_trace_twin(case.truth, pair, inputs), ours)
        return Comparison.of(compare(*both, BFLOAT16_RATIO, case.dtype, pair.name, truth))
    bound = BOUNDS[scope, case.dtype]
    rows = compare(*both, bound, case.dtype, pair.name)
    if all(row.ok for row in rows):
        return Comparison.of(rows)
    assert bound is not None
    param_grads = {
        path: (ours.param_grads[path], theirs.param_grads[path]) for path in ours.param_grads
    }
    fault = locate(ours, theirs, bound, param_grads)
    return Comparison(rows, layer or (fault[0] if fault else None))


def compare_functions(
    case: Case,
    layer: str,
    function: Callable[..., Any],
    twin: Callable[..., Any],
    inputs: Inputs,
) -> Comparison:
    """`compare_pair` for functions without parameters, as the call of an empty module."""

    class Module(nnx.Module):
        def __call__(self, *args: Any) -> Any:
            return function(*args)

    class Twin(torch.nn.Module):
        def forward(self, *args: Any) -> Any:
            return twin(*args)

    pair = ModelPair(lambda config, rngs: Module(), lambda config: Twin())
    return compare_pair(case, pair, inputs, "layer", layer)


@functools.lru_cache(maxsize=4)  # all bugs of a proof are compared with the same trace
def _trace_twin(case: Case, pair: ModelPair, inputs: Inputs) -> Trace:
    with arithmetic(case.dtype):
        _, params = pair.draw(case)
        twin = pair.twin(case, params)
        trace = trace_torch(twin, inputs(case)[1], case.number_type, case.seed)
        return trace._replace(param_grads=in_jax_names(params, trace.param_grads))


def _with_params(values: dict[Key, Any], grads: dict[str, Any]) -> dict[Key, Any]:
    return values | {Key(owner_of(path), "param_grad", path): g for path, g in grads.items()}


def _named(values: dict[Key, Any], layer: str | None, quantity: Quantity | None) -> dict[Key, Any]:
    named = {}
    for key, value in values.items():
        path = f"{key.quantity} {key.path}" if quantity else key.path
        named[Key(layer or key.layer, quantity or key.quantity, path)] = value
    return named
