"""A PyTorch model at work: every tensor that an operation makes, with the module that asked for it.

Forward hooks say which module runs; a `TorchFunctionMode` sees the operations, so that attention
inside a forward or the parts of `MultiheadAttention` are values with an owner as well. Arithmetic
is float64: a cast to float32 is a cast to float64, one to half precision is kept.
"""

import contextlib
import dataclasses
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

_LIBRARY = os.path.dirname(os.path.abspath(torch.__file__)) + os.sep
_MOVES = (
    "reshape view permute transpose flatten unflatten contiguous squeeze unsqueeze __getitem__ "
    "t T mT movedim swapaxes chunk split unbind expand clone to float double detach view_as "
    "reshape_as narrow select expand_as type_as __get__ roll stack cat concat dropout flip"
)
LAYOUT_OPERATIONS = frozenset(_MOVES.split())
"""Operations that move numbers and compute none."""


@dataclasses.dataclass
class Value:
    """One tensor of the run."""

    index: int
    array: np.ndarray
    """Its numbers when it was made; in float64 if they are floating point."""
    function: str
    """The operation that made it, or `parameter`, `buffer`, `input`, `constant`."""
    owner: str
    """The module whose forward made it; empty for the model itself."""
    line: str
    """`file.py:line` of the user's code."""
    inputs: tuple[int, ...]
    name: str = ""
    """The name of a parameter, buffer or input."""
    active: bool = False
    """Whether it depends on the model's inputs by way of floating point numbers."""
    tensor: torch.Tensor | None = None


@dataclasses.dataclass
class Call:
    """One call of one module."""

    name: str
    number: int
    args: tuple
    kwargs: dict[str, Any]
    start: int
    """The number of values when it began."""
    inputs: list[int] = dataclasses.field(default_factory=list)
    outputs: list[int] = dataclasses.field(default_factory=list)
    output: Any = None


@dataclasses.dataclass
class Recording:
    """The values of one run in order of execution, the calls of modules in the order they began."""

    values: list[Value]
    calls: list[Call]
    outputs: dict[str, int]
    """The model's results by path."""

    def users(self) -> list[list[int]]:
        """For each value the values that are computed from it directly."""
        found: list[list[int]] = [[] for _ in self.values]
        for value in self.values:
            for index in value.inputs:
                found[index].append(value.index)
        return found


def record_torch(
    model: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], keep: bool = False
) -> Recording:
    """Run `model(*args, **kwargs)`, a module or a function of float64 tensors, and record it."""
    recorder = _Recorder(keep)
    modules = dict(model.named_modules()) if isinstance(model, torch.nn.Module) else {}
    if isinstance(model, torch.nn.Module):
        for kind, named in (("parameter", model.named_parameters), ("buffer", model.named_buffers)):
            for name, tensor in named():
                recorder.source(tensor, kind, name)
    for path, tensor in flat_tensors((tuple(args), dict(kwargs))):
        recorder.source(tensor, "input", path)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_visible())
        for name, module in modules.items():
            for handle in recorder.hooked(name, module):
                stack.callback(handle.remove)
        stack.enter_context(recorder)
        result = model(*args, **kwargs)
    outputs = {path: recorder.known(tensor) for path, tensor in flat_tensors(result)}
    return Recording(recorder.values, recorder.calls, outputs)


def record_gradients(
    model: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], keep: bool = False
) -> Recording:
    """The same with inputs that want gradients; with `keep` nothing is detached."""
    args, kwargs = _wanting((tuple(args), dict(kwargs)))
    with mock.patch.object(torch, "no_grad", torch.enable_grad if keep else torch.no_grad):
        return record_torch(model, args, kwargs, keep)


def _wanting(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.clone().requires_grad_(value.is_floating_point())
    if type(value) is dict:
        return {key: _wanting(part) for key, part in value.items()}
    if type(value) in (tuple, list):
        return type(value)(_wanting(part) for part in value)
    return value


@contextlib.contextmanager
def _visible() -> Iterator[None]:
    """Nothing runs as one opaque kernel, and float64 is the default type."""
    functional = torch.nn.functional
    names = [name for name in vars(functional) if name.startswith("has_torch_function")]
    fast, default = torch.backends.mha.get_fastpath_enabled(), torch.get_default_dtype()
    with contextlib.ExitStack() as stack:
        for name in names:  # a function of Python is then entered, and its operations are seen
            stack.enter_context(mock.patch.object(functional, name, return_value=False))
        torch.backends.mha.set_fastpath_enabled(False)
        torch.set_default_dtype(torch.float64)
        stack.callback(torch.backends.mha.set_fastpath_enabled, fast)
        stack.callback(torch.set_default_dtype, default)
        yield


class _Recorder(TorchFunctionMode):
    def __init__(self, keep: bool) -> None:
        super().__init__()
        self.keep = keep
        self.values: list[Value] = []
        self.calls: list[Call] = []
        self.running: list[Call] = []
        self.places: dict[int, int] = {}
        self.alive: list[torch.Tensor] = []  # an id is free again when its tensor is gone

    def source(self, tensor: torch.Tensor, kind: str, name: str = "") -> int:
        if id(tensor) in self.places:  # one tensor under two names
            return self.places[id(tensor)]
        active = kind == "input" and tensor.is_floating_point()
        return self.add(tensor, kind, (), name, active)

    def known(self, tensor: torch.Tensor) -> int:
        return (
            self.places.get(id(tensor), -1) if id(tensor) in self.places else self.constant(tensor)
        )

    def constant(self, tensor: torch.Tensor) -> int:
        return self.source(tensor, "constant")

    def add(
        self, tensor: torch.Tensor, function: str, inputs: tuple[int, ...], name: str, active: bool
    ) -> int:
        index = len(self.values)
        owner = self.running[-1].name if self.running else ""
        line = user_line() if inputs else ""
        with torch._C.DisableTorchFunction():
            array = as_float64(tensor)
        self.values.append(Value(index, array, function, owner, line, inputs, name, active, tensor))
        self.places[id(tensor)] = index
        self.alive.append(tensor)
        return index

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", str(func))
        if name == "float":
            func, name = torch.Tensor.double, "double"
        if name == "detach" and self.keep:
            func = torch.Tensor.clone
        args, kwargs = _widened(args), _widened(kwargs)
        try:
            out = func(*args, **kwargs)
        except RuntimeError as error:
            if "dtype" not in str(error) and "type" not in str(error):
                raise
            out = func(*_as_double(args), **_as_double(kwargs))
        changed = out
        if name in ("__setitem__", "copy_") or (name.endswith("_") and not name.startswith("__")):
            changed = args[0]
        elif isinstance(out, torch.Tensor) and id(out) in self.places:
            return out  # such as contiguous() of what is contiguous
        made = [tensor for _, tensor in flat_tensors(changed)]
        if made:
            inputs = tuple(
                dict.fromkeys(self.known(tensor) for _, tensor in flat_tensors((args, kwargs)))
            )
            active = any(self.values[index].active for index in inputs) or name == "embedding"
            for tensor in made:
                self.add(tensor, name, inputs, "", active)
        return out

    def hooked(self, name: str, module: torch.nn.Module) -> list[Any]:
        def before(_: Any, args: tuple, kwargs: dict[str, Any]) -> None:
            number = sum(call.name == name for call in self.calls)
            call = Call(name, number, args, kwargs, len(self.values))
            call.inputs = [self.known(tensor) for _, tensor in flat_tensors((args, kwargs))]
            self.calls.append(call)
            self.running.append(call)

        def after(_: Any, args: tuple, output: Any) -> None:
            call = self.running.pop()
            call.output = output
            call.outputs = [self.known(tensor) for _, tensor in flat_tensors(output)]

        return [
            module.register_forward_pre_hook(before, with_kwargs=True),
            module.register_forward_hook(after, always_call=False),
        ]


def flat_tensors(value: Any, path: str = "") -> list[tuple[str, torch.Tensor]]:
    """Every tensor in nested tuples, lists, dicts and dataclasses, with its path."""
    if isinstance(value, torch.Tensor):
        return [(path, value)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts: Any = ((f.name, getattr(value, f.name, None)) for f in dataclasses.fields(value))
    elif isinstance(value, Mapping):
        parts = value.items()
    elif isinstance(value, torch.nn.utils.rnn.PackedSequence):
        parts = [("data", value.data)]
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        parts = zip(value._fields, value, strict=True)
    elif isinstance(value, list | tuple):
        parts = enumerate(value)
    else:
        return []
    return [found for key, part in parts for found in flat_tensors(part, joined(path, key))]


def joined(path: str, key: Any) -> str:
    """A longer path: `a.b`, `a.0`."""
    return f"{path}.{key}" if path else str(key)


def as_float64(tensor: torch.Tensor) -> np.ndarray:
    """The numbers of a tensor now, those of floating point in float64; a copy."""
    tensor = tensor.detach()
    if tensor.is_sparse or tensor.is_quantized:
        tensor = tensor.to_dense() if tensor.is_sparse else tensor.dequantize()
    return np.array((tensor.double() if tensor.is_floating_point() else tensor).cpu().numpy())


def _widened(value: Any) -> Any:
    """The arguments of an operation with float64 for float32, where a type is named."""
    if value is torch.float32:
        return torch.float64
    if isinstance(value, tuple) and type(value) is tuple:
        return tuple(_widened(part) for part in value)
    if type(value) is dict:
        return {key: _widened(part) for key, part in value.items()}
    return value


def _as_double(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.double() if value.is_floating_point() else value
    if type(value) in (tuple, list):
        return type(value)(_as_double(part) for part in value)
    if type(value) is dict:
        return {key: _as_double(part) for key, part in value.items()}
    return value


def user_line() -> str:
    """`file.py:line` of the innermost frame outside torch and this file."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if not file.startswith(_LIBRARY) and file != __file__ and not file.startswith("<"):
            return f"{file}:{frame.f_lineno}"
        frame = frame.f_back
    return ""
