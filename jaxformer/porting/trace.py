"""Watching a model at work: what goes in and out of every module, forwards and backwards.

`trace_jax` (Flax NNX) and `trace_torch` run an unedited model once and return the same kind of
record, so that two of them can be laid side by side. Each module call notes its float inputs and
outputs and the gradients with respect to both: of an output, the gradient through everything that
uses it; of an input, the gradient through this module alone. So a module whose output gradients are
right and whose input gradients are wrong is itself wrong, whatever happens elsewhere.

The scalar that is differentiated is the sum of the float outputs times numbers drawn from a seed,
the same for both sides.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from jaxtyping import PyTree

from jaxformer.errors import UserError
from jaxformer.models.functional import flat_params
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


_HIDDEN = (
    "a module is called inside jit, scan, remat or vmap, where its output cannot be seen: "
    "compare the model with that turned off"
)


def rounded(values: np.ndarray, dtype: DType) -> np.ndarray:
    """The nearest numbers of a type, kept in float64."""
    if dtype == "float64":
        return values
    return values.astype(np.float32).astype(jnp.dtype(dtype)).astype(np.float64)


def trace_jax(
    model: nnx.Module, args: Sequence[Any], dtype: DType, seed: int, jit: bool = False
) -> Trace:
    """Run `model(*args)` and record every module's calls.

    Args:
        model: any NNX module; it is not changed.
        args: positional arguments, pytrees of arrays or None.
        dtype: type whose numbers the output is weighed with.
        seed: of those numbers.
        jit: compile the whole instead of running operation by operation.

    Raises:
        UserError: when a module is called inside jit, scan, remat or vmap of the model's own: its
            values cannot be seen from outside.
    """
    graphdef, *states = nnx.split(model, nnx.Param, ...)
    params, rest = states
    ends: list[tuple[str, int, int]] = []

    def run(params: PyTree, deltas: Any, args: Sequence[Any]) -> tuple[list, list]:
        recorder = _Recorder(nnx.merge(graphdef, params, rest), deltas)
        with recorder.watching():
            recorder.model(*args)
        ends[:] = [(call.path, call.number, call.end) for call in recorder.calls]
        return recorder.calls[0].outputs, [(c.inputs, c.outputs) for c in recorder.calls]

    def differentiate(params: PyTree, args: Sequence[Any]) -> tuple[list, PyTree, list]:
        # Adding a zero to a value and differentiating by that zero gives the value's gradient.
        shapes = jax.eval_shape(lambda p: run(p, None, args)[1], params)
        deltas = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        forward = functools.partial(run, args=args)
        outputs, pullback, seen = jax.vjp(forward, params, deltas, has_aux=True)
        weights = _weights([x.shape for x in outputs], dtype, seed)
        cotangents = [jnp.asarray(w, x.dtype) for w, x in zip(weights, outputs, strict=True)]
        param_grads, grads = pullback(cotangents)
        return seen, param_grads, grads

    compiled: Callable[..., Any] = jax.jit(differentiate) if jit else differentiate
    try:
        seen, param_grads, grads = compiled(params, tuple(args))
    except jax.errors.UnexpectedTracerError as error:
        raise UserError(_HIDDEN) from error
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((seen, grads))):
        raise UserError(_HIDDEN)
    calls = [
        Call(*end, *values, *gradients)
        for end, values, gradients in zip(ends, seen, grads, strict=True)
    ]
    return Trace(calls, set(_jax_paths(model).values()), flat_params(nnx.to_pure_dict(param_grads)))


class _Recorder:
    """Patches `__call__` of the classes that occur in one NNX model while it runs."""

    def __init__(self, model: nnx.Module, deltas: Any):
        self.model = model
        self.deltas = deltas
        self.paths = _jax_paths(model)
        self.calls: list[Call] = []
        self.ended = 0
        self.running: set[int] = set()

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for cls in {type(module) for _, module in nnx.iter_modules(self.model)}:
                if any("__call__" in vars(base) for base in cls.__mro__):
                    stack.enter_context(mock.patch.object(cls, "__call__", self.watched(cls)))
            yield

    def watched(self, cls: type) -> Callable[..., Any]:
        original = cls.__call__

        def call(module: nnx.Module, *args: Any, **kwargs: Any) -> Any:
            if id(module) not in self.paths:
                raise UserError(_HIDDEN)  # a copy, made by a transformation
            # A class that calls its parent's __call__ is one call, not two.
            if id(module) in self.running:
                return original(module, *args, **kwargs)
            self.running.add(id(module))
            try:
                return self.record(module, original, args, kwargs)
            finally:
                self.running.discard(id(module))

        return call

    def record(
        self, module: nnx.Module, original: Callable[..., Any], args: tuple, kwargs: dict
    ) -> Any:
        path, index = self.paths[id(module)], len(self.calls)
        number = sum(call.path == path for call in self.calls)
        self.calls.append(Call(path, number, 0, [], [], [], []))
        given = None if self.deltas is None else self.deltas[index]

        leaves, tree = jax.tree.flatten((args, kwargs))
        leaves, inputs = _perturbed(leaves, None if given is None else given[0])
        args, kwargs = jax.tree.unflatten(tree, leaves)
        leaves, tree = jax.tree.flatten(original(module, *args, **kwargs))
        leaves, outputs = _perturbed(leaves, None if given is None else given[1])
        self.calls[index] = Call(path, number, self.ended, inputs, outputs, [], [])
        self.ended += 1
        return jax.tree.unflatten(tree, leaves)


def _jax_paths(model: nnx.Module) -> dict[int, str]:
    return {id(module): ".".join(map(str, path)) for path, module in nnx.iter_modules(model)}


def _perturbed(leaves: list[Any], deltas: list[Any] | None) -> tuple[list[Any], list[Any]]:
    """The leaves, each float one with its delta added, and the float ones alone."""
    floats = [i for i, leaf in enumerate(leaves) if _is_float(leaf)]
    leaves = list(leaves)
    if deltas is not None:
        for i, delta in zip(floats, deltas, strict=True):
            leaves[i] = leaves[i] + delta
    return leaves, [leaves[i] for i in floats]


def _is_float(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)


def _weights(shapes: Sequence[tuple[int, ...]], dtype: DType, seed: int) -> Iterator[np.ndarray]:
    """Numbers of norm near 1: the size of gradients then depends little on that of the output."""
    rng = np.random.default_rng(seed)
    for shape in shapes:
        scale = 2.0 ** -round(math.log2(max(math.prod(shape), 1)) / 2)  # exact in every type
        yield scale * rounded(rng.standard_normal(shape), dtype)


def trace_torch(model: torch.nn.Module, args: Sequence[Any], dtype: DType, seed: int) -> Trace:
    """Run `model(*args)` and record every module's calls; as `trace_jax`, for PyTorch.

    Neither the model nor the `.grad` of its parameters is changed.
    """
    paths = {id(module): path for path, module in model.named_modules()}
    calls: list[Call] = []
    running: list[int] = []
    ended = 0

    def before(module: torch.nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        path = paths[id(module)]
        number = sum(call.path == path for call in calls)
        inputs: list[torch.Tensor] = []
        args = tuple(_noted(x, inputs) for x in args)
        kwargs = {name: _noted(kwargs[name], inputs) for name in sorted(kwargs)}  # as in jax
        running.append(len(calls))
        calls.append(Call(path, number, 0, inputs, [], [], []))
        return args, kwargs

    def after(module: torch.nn.Module, args: tuple, output: Any) -> None:
        nonlocal ended
        index = running.pop()
        calls[index] = calls[index]._replace(end=ended, outputs=_tensors(output))
        ended += 1

    with contextlib.ExitStack() as stack:
        for module in model.modules():
            pre = module.register_forward_pre_hook(before, with_kwargs=True)
            post = module.register_forward_hook(after)
            stack.callback(pre.remove)
            stack.callback(post.remove)
        with torch.enable_grad():
            model(*args)

    outputs = [x for x in calls[0].outputs if x.requires_grad]
    shapes = [tuple(x.shape) for x in calls[0].outputs]
    weights = [torch.as_tensor(w) for w in _weights(shapes, dtype, seed)]
    kept = [
        w.to(x.dtype) for w, x in zip(weights, calls[0].outputs, strict=True) if x.requires_grad
    ]
    params = {name: p for name, p in model.named_parameters() if p.requires_grad}
    asked = [x for call in calls for x in (*call.inputs, *call.outputs)] + list(params.values())
    grads = iter(_gradients(outputs, asked, kept))
    calls = [
        call._replace(
            input_grads=[next(grads) for _ in call.inputs],
            output_grads=[next(grads) for _ in call.outputs],
        )
        for call in calls
    ]
    return Trace(calls, set(paths.values()), {name: next(grads) for name in params})


def _noted(value: Any, inputs: list[torch.Tensor]) -> Any:
    """A float tensor as a node of its own in the graph, noted; anything else as it is."""
    if not (isinstance(value, torch.Tensor) and value.is_floating_point()):
        return value
    value = (value if value.requires_grad else value.detach().requires_grad_()).clone()
    inputs.append(value)
    return value


def _tensors(output: Any) -> list[torch.Tensor]:
    """The float tensors in a result: a tensor, or tuples, lists and dicts of such."""
    if isinstance(output, torch.Tensor):
        return [output] if output.is_floating_point() else []
    if isinstance(output, dict):
        output = list(output.values())
    if isinstance(output, list | tuple):
        return [tensor for part in output for tensor in _tensors(part)]
    return []


def _gradients(
    outputs: list[torch.Tensor], inputs: list[torch.Tensor], weights: list[torch.Tensor]
) -> list[torch.Tensor]:
    """Gradients of the weighed sum of the outputs, zero where nothing depends on an input."""
    reached = [x for x in inputs if x.requires_grad]
    if not (outputs and reached):
        return [torch.zeros_like(x) for x in inputs]
    found = iter(torch.autograd.grad(outputs, reached, weights, allow_unused=True))
    grads = [next(found) if x.requires_grad else None for x in inputs]
    return [torch.zeros_like(x) if g is None else g for g, x in zip(grads, inputs, strict=True)]
