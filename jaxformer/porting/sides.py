"""The two sides of a comparison, each in one form, whatever style they were written in.

`jax_side` turns an NNX module, a Linen module with its variables, a function with its parameters
or a callable pytree into a pure function of named leaves and named inputs; `torch_side` a module or
a function into one that computes in float64.
"""

import contextlib
import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from flax import linen, nnx
from flax.errors import ModifyScopeVariableError

from jaxformer.errors import UserError
from jaxformer.porting.factories import user_code

STYLES = (
    "an NNX module, (Linen module, variables), (function, params) or a callable pytree of arrays"
)


@dataclasses.dataclass
class JaxSide:
    """A port: `function(leaves, inputs)` returns its array outputs in order."""

    style: str
    leaves: dict[str, Any]
    """Parameters and other state by path, such as `blocks.0.kernel`."""
    call: Callable[[Mapping[str, Any], tuple, dict], Any]
    """The user's model: leaves, positional and keyword values to its result."""
    params: Callable[[Mapping[str, Any]], Any]
    """The pytree of parameters that an optimizer is given, made of the leaves."""
    output_paths: list[str] = dataclasses.field(default_factory=list)
    optimizer: optax.GradientTransformation | None = None

    def trainable(self) -> Any:
        """The pytree that an optimizer is given, with the paths of its leaves in their places."""
        floats = {n for n, x in self.leaves.items() if jnp.issubdtype(x.dtype, jnp.floating)}
        named = self.params({name: name for name in self.leaves})
        return jax.tree.map(lambda x: x if isinstance(x, str) and x in floats else None, named)

    def bound(self, args: tuple, kwargs: dict) -> tuple[Callable[..., list], dict[str, Any]]:
        """The pure function of leaves and inputs, and the array inputs of this call by path."""
        flat, tree = jax.tree_util.tree_flatten_with_path((args, kwargs), is_leaf=_is_none)
        paths = [path_name(path[1:]) for path, _ in flat]
        arrays = {
            path: _as_jax(value)
            for path, (_, value) in zip(paths, flat, strict=True)
            if is_array(value)
        }

        def function(leaves: Mapping[str, Any], inputs: Mapping[str, Any]) -> list:
            values = [inputs.get(path, v) for path, (_, v) in zip(paths, flat, strict=True)]
            own_args, own_kwargs = jax.tree.unflatten(tree, values)
            with user_code("calling the JAX model"):
                result = self.call(leaves, own_args, own_kwargs)
            outputs = flat_arrays(result)
            self.output_paths[:] = [path for path, _ in outputs]
            return [value for _, value in outputs]

        return function, arrays


@dataclasses.dataclass
class TorchSide:
    """The original: a module or a function, in float64."""

    model: Callable[..., Any]
    half: bool
    """Whether it was written in half precision."""
    tables: set[str]
    """Buffers and constants that were computed in float32."""
    optimizer: torch.optim.Optimizer | None = None
    schedules: tuple[Any, ...] = ()
    """Learning rate schedulers, which step after the optimizer."""

    def copied(self) -> tuple[Any, Any, tuple[Any, ...]]:
        """The model, its optimizer and schedules, to be run without changing these."""
        return copied(self.model, self.optimizer, self.schedules)

    @property
    def module(self) -> torch.nn.Module | None:
        """The model if it is a module."""
        return self.model if isinstance(self.model, torch.nn.Module) else None

    def kinds(self) -> dict[str, str]:
        """The class of every module by its name."""
        modules = self.module.named_modules() if self.module is not None else ()
        return {name: type(module).__name__ for name, module in modules}

    def state(self) -> dict[str, np.ndarray]:
        """Every floating point parameter and buffer by every name it has, in float64."""
        if self.module is None:
            return {}
        named = [
            *self.module.named_parameters(remove_duplicate=False),
            *self.module.named_buffers(remove_duplicate=False),
        ]
        return {
            name: tensor.detach().double().cpu().numpy()
            for name, tensor in named
            if tensor.is_floating_point()
        }


def torch_side(given: Any) -> TorchSide:
    """The PyTorch side in float64; the user's own model is not changed.

    Args:
        given: a module or a function; (module, optimizer), and behind it learning rate schedulers.

    Raises:
        UserError: when it is none of these.
    """
    model, optimizer, schedules = given, None, ()
    if isinstance(given, tuple) and len(given) > 1:
        model, optimizer, *rest = given
        schedules = tuple(rest)
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise UserError(
                f"--torch returns a tuple with a {type(optimizer).__name__}: return an nn.Module, "
                "or (nn.Module, torch.optim.Optimizer)"
            )
    if not callable(model):
        raise UserError(f"--torch returns a {type(model).__name__}: return an nn.Module")
    if not isinstance(model, torch.nn.Module):
        return TorchSide(model, half=False, tables=set())
    types = {p.dtype for p in model.parameters() if p.is_floating_point()}
    half = bool(types) and types <= {torch.float16, torch.bfloat16}
    tables = {name for name, buffer in model.named_buffers() if buffer.dtype == torch.float32}
    with user_code("copying the PyTorch model"):
        model, optimizer, schedules = copied(model, optimizer, schedules)
        model = model.cpu().double().requires_grad_(True)
    return TorchSide(model, half, tables, optimizer, schedules)


def copied(model: Any, optimizer: Any, schedules: tuple[Any, ...]) -> tuple[Any, Any, Any]:
    """Copies that belong together; the hooks of an optimizer, which it does not copy, as well."""
    new = copy.deepcopy((model, optimizer, schedules))
    for name in ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks"):
        if optimizer is not None:
            setattr(new[1], name, getattr(optimizer, name))
    return new


def jax_side(port: Any) -> JaxSide:
    """The JAX side as leaves and a function of them, with its optimizer if it has one.

    Raises:
        UserError: when the style is not known.
    """
    if isinstance(port, tuple) and len(port) == 2:
        optimizer = port[1].tx if isinstance(port[1], nnx.Optimizer) else port[1]
        if isinstance(optimizer, optax.GradientTransformation):
            return dataclasses.replace(jax_side(port[0]), optimizer=optimizer)
    if isinstance(port, nnx.Module):
        return _nnx_side(port)
    if isinstance(port, linen.Module) and port.scope is not None:
        port = port.unbind()
    if isinstance(port, tuple | list) and len(port) == 2:
        model, values = port
        if isinstance(model, linen.Module):
            return _linen_side(model, values)
        if callable(model):
            leaves, tree = _leaves(values)
            return JaxSide("function", leaves, lambda p, a, k: model(tree(p), *a, **k), tree)
    if isinstance(port, linen.Module):
        raise UserError("--jax returns a Linen module alone: return (module, variables)")
    if callable(port):
        leaves, tree = _leaves(port)
        if not leaves and not _is_function(port):
            raise UserError(
                f"--jax returns a {type(port).__name__} without arrays: return {STYLES}"
            )
        if not leaves:
            return JaxSide("function", {}, lambda p, a, k: port(*a, **k), dict)
        return JaxSide("callable pytree", leaves, lambda p, a, k: tree(p)(*a, **k), tree)
    raise UserError(f"--jax returns a {type(port).__name__}: return {STYLES}")


def _nnx_side(model: nnx.Module) -> JaxSide:
    graphdef, state = nnx.split(model)
    leaves, tree = _leaves(state)

    def call(values: Mapping[str, Any], args: tuple, kwargs: dict) -> Any:
        merged = nnx.merge(graphdef, tree(values))
        with _named_modules(merged):
            return merged(*args, **kwargs)

    return JaxSide("NNX", leaves, call, lambda p: nnx.filter_state(tree(p), nnx.Param))


@contextlib.contextmanager
def _named_modules(model: nnx.Module) -> Iterator[None]:
    """Every module's operations carry its path in their name stack."""
    paths = {id(m): ".".join(map(str, path)) for path, m in nnx.iter_modules(model)}

    def named(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(module: nnx.Module, *args: Any, **kwargs: Any) -> Any:
            # A transformation calls a copy, which has no path.
            path = paths.get(id(module), type(module).__name__)
            with jax.named_scope(f"nnx:{path}"):
                return original(module, *args, **kwargs)

        return call

    with contextlib.ExitStack() as stack:
        for cls in {type(module) for _, module in nnx.iter_modules(model)}:
            if "__call__" in vars(cls):
                stack.enter_context(mock.patch.object(cls, "__call__", named(cls.__call__)))
        yield


def _linen_side(module: linen.Module, variables: Any) -> JaxSide:
    leaves, tree = _leaves(variables)
    collections = [name for name in variables if name != "params"]

    def call(values: Mapping[str, Any], args: tuple, kwargs: dict) -> Any:
        try:
            return module.apply(tree(values), *args, **kwargs)
        except ModifyScopeVariableError:  # batch statistics in train mode
            return module.apply(tree(values), *args, **kwargs, mutable=collections)[0]

    return JaxSide("Linen", leaves, call, lambda p: tree(p).get("params", {}))


def _leaves(tree: Any) -> tuple[dict[str, Any], Callable[[Mapping[str, Any]], Any]]:
    """The arrays of a pytree by path, and the function that puts other arrays in their places."""
    flat, structure = jax.tree_util.tree_flatten_with_path(tree)
    paths: list[str] = []
    for path, _ in flat:
        name = path_name(path)
        paths.append(name if name not in paths else f"{name}#{len(paths)}")
    leaves = {
        path: _as_jax(value)
        for path, (_, value) in zip(paths, flat, strict=True)
        if is_array(value) and not isinstance(value, np.generic)
    }

    def rebuild(values: Mapping[str, Any]) -> Any:
        new = [values.get(path, v) for path, (_, v) in zip(paths, flat, strict=True)]
        return jax.tree.unflatten(structure, new)

    return leaves, rebuild


def path_name(path: tuple) -> str:
    """`blocks.0.kernel` for the keys of a pytree's path."""
    parts = [
        str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", key)))) for key in path
    ]
    return ".".join(part for part in parts if part not in ("value", "raw_value", "get_value"))


def flat_arrays(value: Any, path: str = "") -> list[tuple[str, Any]]:
    """Every array in a result: pytrees, and dataclasses that are none."""
    if is_array(value):
        return [(path, value)]
    if isinstance(value, Mapping):
        parts: Any = value.items()
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = ((f.name, getattr(value, f.name)) for f in dataclasses.fields(value))
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        parts = zip(value._fields, value, strict=True)
    elif isinstance(value, tuple | list):
        parts = enumerate(value)
    else:
        leaves = jax.tree_util.tree_flatten_with_path(value)[0]
        return [(path_name(p), x) for p, x in leaves if is_array(x)]
    return [
        found
        for key, part in parts
        for found in flat_arrays(part, f"{path}.{key}" if path else str(key))
    ]


def is_array(value: Any) -> bool:
    """Whether it is an array of JAX, numpy or PyTorch."""
    return isinstance(value, jax.Array | np.ndarray | np.generic | torch.Tensor)


def _as_jax(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        value = value.float().numpy() if value.dtype == torch.bfloat16 else value.numpy()
    if isinstance(value, np.ndarray):  # as a user's call would convert it
        return value
    return value


def _is_none(value: Any) -> bool:
    return value is None


def _is_function(value: Any) -> bool:
    return hasattr(value, "__code__") or hasattr(value, "__wrapped__") or hasattr(value, "func")


@dataclasses.dataclass
class Inputs:
    """What each side is called with."""

    jax: tuple[tuple, dict]
    torch: tuple[tuple, dict]


def inputs_of(given: Any) -> Inputs:
    """Inputs in one common form, or one per side under the keys `jax` and `torch`."""
    if isinstance(given, Mapping) and set(given) == {"jax", "torch"}:
        return Inputs(_called(given["jax"], _common), _called(given["torch"], _as_torch))
    return Inputs(_called(given, _common), _called(given, _as_torch))


def _called(given: Any, convert: Callable[[Any], Any]) -> tuple[tuple, dict]:
    if isinstance(given, Mapping):
        return (), {key: _mapped(convert, value) for key, value in given.items()}
    args = tuple(given) if isinstance(given, tuple | list) else (given,)
    if len(args) == 2 and isinstance(args[0], tuple) and isinstance(args[1], dict):
        return tuple(_mapped(convert, x) for x in args[0]), {
            key: _mapped(convert, value) for key, value in args[1].items()
        }
    return tuple(_mapped(convert, value) for value in args), {}


def _mapped(convert: Callable[[Any], Any], value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _mapped(convert, part) for key, part in value.items()}
    if type(value) in (tuple, list):
        return type(value)(_mapped(convert, part) for part in value)
    return convert(value) if is_array(value) else value


def _common(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return _as_jax(value)
    return value


def _as_torch(value: Any) -> Any:
    """A tensor in float64; integers become int64, the type that embeddings are indexed with."""
    if isinstance(value, torch.Tensor):
        return value.detach().clone().double() if value.is_floating_point() else value.clone()
    array = np.asarray(value)
    if jnp.issubdtype(array.dtype, jnp.floating):
        return torch.from_numpy(np.array(array, np.float64))
    if array.dtype.kind in "iu":
        return torch.from_numpy(np.array(array, np.int64))
    return torch.from_numpy(np.array(array))
