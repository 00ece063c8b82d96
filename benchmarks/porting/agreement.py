"""Whether a port is right, measured without `jaxformer.porting`.

Both sides run in float64 as far as their code allows it. The outputs are compared entry by entry,
and the parameters' gradients along a drawn direction: for v in the space of PyTorch's state dict
and a random cotangent of the output, <gradient, v> is the same number on both sides, where the
port's direction is convert(v) - convert(0). This needs no pairing of parameters and holds for
every conversion that is linear.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import linen, nnx

from benchmarks.porting.case import Case, weights


class Agreement(NamedTuple):
    """The relative errors of a port."""

    output: float
    gradient: float


def measure(case: Case) -> Agreement:
    """The errors of the output and of the gradient along one direction of all parameters."""
    with jax.enable_x64(True):
        model = case.torch().double()
        theirs = _outputs(_call(model, _to_torch(_of_side(case.inputs(), "torch"))))
        function, leaves, tree = _as_function(case.port(weights(case.torch())))
        inputs = jax.tree.map(_wide, _of_side(case.inputs(), "jax"))
        rng = np.random.default_rng(0)
        cotangents = [rng.standard_normal(b.shape) for b in theirs]

        def scalar(floats: list[Any]) -> tuple[jax.Array, list[jax.Array]]:
            full = [leaf if x is None else x for leaf, x in zip(leaves, floats, strict=True)]
            ours = [
                _arranged(a, b.shape)
                for a, b in zip(
                    _outputs(_call(partial(function, tree.unflatten(full)), inputs)),
                    theirs,
                    strict=True,
                )
            ]
            pairs = zip(ours, cotangents, strict=True)
            return sum((a * c).sum() for a, c in pairs if a.shape == c.shape), ours

        floats = [_wide(leaf) if _is_float(leaf) else None for leaf in leaves]
        (_, ours), mine = jax.jit(jax.value_and_grad(scalar, has_aux=True))(floats)
        pairs = zip(ours, theirs, strict=True)
        output = max(_error(np.asarray(a), b.detach().numpy()) for a, b in pairs)
        their_scalar = sum(
            (b * torch.from_numpy(c)).sum() for b, c in zip(theirs, cotangents, strict=True)
        )
        return Agreement(output, _gradient_error(case, model, their_scalar, mine))


def _gradient_error(case: Case, model: Any, scalar: torch.Tensor, mine: list[Any]) -> float:
    rng = np.random.default_rng(1)
    named = dict(model.named_parameters())
    gradients = torch.autograd.grad(scalar, list(named.values()), allow_unused=True)
    buffers = {name: x.numpy() for name, x in model.named_buffers()}
    zeros = {name: buffers.get(name, np.zeros(x.shape)) for name, x in model.state_dict().items()}
    moved = dict(zeros)
    along = []
    for (name, x), gradient in zip(named.items(), gradients, strict=True):
        direction = rng.standard_normal(x.shape)
        moved[name] = direction  # of a tied one the first name: the port has to read that
        if gradient is not None:
            along.append(float((gradient.numpy() * direction).sum()))
    ends = (_as_function(case.port(state))[1] for state in (moved, zeros))
    ours = sum(
        float(np.vdot(gradient, np.subtract(a, b)))
        for gradient, a, b in zip(mine, *ends, strict=True)
        if gradient is not None
    )
    return abs(ours - sum(along)) / float(np.linalg.norm(along))


def _as_function(side: Any) -> tuple[Any, list[Any], Any]:
    """A function of (parameters, *inputs), the leaves of its parameters, and their tree."""
    if isinstance(side, nnx.Module):
        graphdef, state = nnx.split(side)
        pure: Any = lambda state, *a, **k: nnx.merge(graphdef, state)(*a, **k)  # noqa: E731
        params: Any = state
    elif isinstance(side, tuple) and isinstance(side[0], linen.Module):
        pure, params = side[0].apply, side[1]
    elif isinstance(side, tuple):
        pure, params = side
    else:
        pure, params = lambda module, *a, **k: module(*a, **k), side
    leaves, tree = jax.tree.flatten(params)
    return pure, leaves, tree


def _of_side(inputs: Any, side: str) -> Any:
    own = isinstance(inputs, dict) and set(inputs) == {"jax", "torch"}
    return inputs[side] if own else inputs


def _call(function: Any, inputs: Any) -> Any:
    return function(**inputs) if isinstance(inputs, dict) else function(*inputs)


def _to_torch(inputs: Any) -> Any:
    def convert(x: Any) -> Any:
        x = torch.from_numpy(np.array(x))
        return x.double() if x.is_floating_point() else x

    return jax.tree.map(convert, inputs)


def _outputs(value: Any) -> list[Any]:
    """The float arrays of an output, in order."""
    if isinstance(value, torch.Tensor) or not isinstance(value, (dict, tuple, list)):
        values = [value] if hasattr(value, "shape") else list(vars(value).values())
    else:
        values = list(value.values() if isinstance(value, dict) else value)
        return [x for v in values for x in _outputs(v)]
    return [
        x for x in values if (isinstance(x, torch.Tensor) and x.is_floating_point()) or _is_float(x)
    ]


def _is_float(x: Any) -> bool:
    return (
        hasattr(x, "dtype")
        and not isinstance(x, torch.Tensor)
        and jnp.issubdtype(jnp.result_type(x), jnp.floating)
    )


def _wide(x: Any) -> Any:
    return jnp.asarray(x, jnp.float64) if _is_float(x) else jnp.asarray(x)


def _arranged(ours: Any, shape: tuple[int, ...]) -> Any:
    """Channels first, where that is PyTorch's shape."""
    return jnp.moveaxis(ours, -1, 1) if ours.shape != shape and ours.ndim > 2 else ours


def _error(ours: np.ndarray, theirs: np.ndarray) -> float:
    if ours.shape != theirs.shape or not np.isfinite(ours).all():
        return math.inf
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))
