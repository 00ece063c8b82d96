"""The trace of a Flax NNX model: `__call__` of its classes is patched during one run."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import PyTree

from jaxformer.errors import UserError
from jaxformer.models.functional import flat_params
from jaxformer.porting.compare import DType
from jaxformer.porting.trace import Call, Trace, output_weights

_HIDDEN = (
    "a module is called inside jit, scan, remat or vmap, where its output cannot be seen: "
    "compare the model with that turned off"
)


def trace_jax(
    model: nnx.Module, args: Sequence[Any], dtype: DType, seed: int, jit: bool = False
) -> Trace:
    """Run `model(*args)` and record every module's calls.

    Args:
        model: any NNX module; it is not changed.
        args: positional arguments, pytrees of arrays or None.
        dtype: the type that the factors of the output are rounded to.
        seed: of these factors.
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
        with recorder.patched():
            recorder.model(*args)
        ends[:] = [(call.path, call.number, call.end) for call in recorder.calls]
        return recorder.calls[0].outputs, [(c.inputs, c.outputs) for c in recorder.calls]

    def differentiate(params: PyTree, args: Sequence[Any]) -> tuple[list, PyTree, list]:
        # Adding a zero to a value and differentiating by that zero gives the value's gradient.
        shapes = jax.eval_shape(lambda p: run(p, None, args)[1], params)
        deltas = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        forward = functools.partial(run, args=args)
        outputs, pullback, seen = jax.vjp(forward, params, deltas, has_aux=True)
        weights = output_weights([x.shape for x in outputs], dtype, seed)
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
    def patched(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for cls in {type(module) for _, module in nnx.iter_modules(self.model)}:
                if any("__call__" in vars(base) for base in cls.__mro__):
                    stack.enter_context(mock.patch.object(cls, "__call__", self.recorded(cls)))
            yield

    def recorded(self, cls: type) -> Callable[..., Any]:
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
        deltas = (None, None) if self.deltas is None else self.deltas[index]

        leaves, tree = jax.tree.flatten((args, kwargs))
        leaves, inputs = _perturbed(leaves, deltas[0])
        args, kwargs = jax.tree.unflatten(tree, leaves)
        leaves, tree = jax.tree.flatten(original(module, *args, **kwargs))
        leaves, outputs = _perturbed(leaves, deltas[1])
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
