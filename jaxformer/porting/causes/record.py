"""The recording of a forward pass of PyTorch as a `Graph`.

What PyTorch computes in one call but a port spells out (attention, recurrent layers) is recorded as
the calls of `decompose.py`.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from jaxformer.porting.causes.decompose import DECOMPOSED
from jaxformer.porting.causes.graph import Block, Call, Graph, Ref, mapped, tensors_of

NAMES = {
    **dict.fromkeys(("__add__", "__radd__", "__iadd__", "add_"), "add"),
    **dict.fromkeys(("__mul__", "__rmul__", "__imul__", "mul_", "multiply"), "mul"),
    **dict.fromkeys(("__truediv__", "__itruediv__", "true_divide", "divide", "div_"), "div"),
    **dict.fromkeys(("__rtruediv__", "__rdiv__"), "rdiv"),
    **dict.fromkeys(("__sub__", "__isub__", "sub_", "subtract"), "sub"),
    **dict.fromkeys(("__rsub__", "rsub"), "rsub"),
    **dict.fromkeys(("__matmul__", "bmm", "mm"), "matmul"),
    **dict.fromkeys(("__and__", "logical_and", "bitwise_and"), "and"),
    **dict.fromkeys(("__or__", "logical_or", "bitwise_or"), "or"),
    **dict.fromkeys(("__invert__", "logical_not", "bitwise_not"), "not"),
    **dict.fromkeys(("__pow__",), "pow"),
    **dict.fromkeys(("__neg__", "negative"), "neg"),
    **dict.fromkeys(("__eq__",), "eq"),
    **dict.fromkeys(("__getitem__",), "getitem"),
    **dict.fromkeys(("__setitem__",), "setitem"),
    **dict.fromkeys(("concat", "concatenate", "hstack"), "cat"),
    **dict.fromkeys(("swapaxes", "swapdims"), "transpose"),
    **dict.fromkeys(("greater", "__gt__"), "gt"),
    **dict.fromkeys(("greater_equal", "__ge__"), "ge"),
    **dict.fromkeys(("less", "__lt__"), "lt"),
    **dict.fromkeys(("less_equal", "__le__"), "le"),
}


IN_PLACE = (
    *("__setitem__", "__iadd__", "__isub__", "__imul__", "__itruediv__", "__iand__", "__ior__"),
    *("__ixor__", "__ipow__"),
)
"""Operators that change their first argument."""


_CONV = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")


_TRANSPOSED = (
    "input",
    "weight",
    "bias",
    "stride",
    "padding",
    "output_padding",
    "groups",
    "dilation",
)


_POOL = ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")


_AVERAGE = (
    *("input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad"),
    "divisor_override",
)


_NORM = ("input", "normalized_shape", "weight", "bias", "eps")


SIGNATURES: Mapping[str, tuple[str, ...]] = {
    "linear": ("input", "weight", "bias"),
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _CONV),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _TRANSPOSED),
    **dict.fromkeys(("max_pool1d", "max_pool2d", "max_pool3d"), _POOL),
    **dict.fromkeys(("avg_pool1d", "avg_pool2d", "avg_pool3d"), _AVERAGE),
    "layer_norm": _NORM,
    "rms_norm": ("input", "normalized_shape", "weight", "eps"),
    "group_norm": ("input", "num_groups", "weight", "bias", "eps"),
    "batch_norm": (
        *("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
    ),
    "instance_norm": (
        *("input", "running_mean", "running_var", "weight", "bias"),
        *("use_input_stats", "momentum", "eps"),
    ),
    "normalize": ("input", "p", "dim", "eps"),
    "embedding": ("input", "weight", "padding_idx"),
    "softmax": ("input", "dim"),
    "log_softmax": ("input", "dim"),
    "masked_fill": ("input", "mask", "value"),
    "masked_fill_": ("input", "mask", "value"),
    "where": ("condition", "input", "other"),
    "cat": ("tensors", "dim"),
    "stack": ("tensors", "dim"),
    "chunk": ("input", "chunks", "dim"),
    "split": ("input", "split_size_or_sections", "dim"),
    "unbind": ("input", "dim"),
    "tril": ("input", "diagonal"),
    "triu": ("input", "diagonal"),
    "mean": ("input", "dim", "keepdim"),
    "sum": ("input", "dim", "keepdim"),
    "amax": ("input", "dim", "keepdim"),
    "max": ("input", "dim", "keepdim"),
    "repeat_interleave": ("input", "repeats", "dim"),
    "topk": ("input", "k", "dim"),
    "flip": ("input", "dims"),
    "roll": ("input", "shifts", "dims"),
    "cross_entropy": ("input", "target", "weight"),
    "nll_loss": ("input", "target", "weight"),
    "addmm": ("input", "mat1", "mat2"),
    "leaky_relu": ("input", "negative_slope"),
    "elu": ("input", "alpha"),
    "pixel_shuffle": ("input", "upscale_factor"),
}
"""Arguments that have a name here are kept by name, however they were passed."""


def _functional(function: Callable[..., Any]) -> Callable[..., Any]:
    """An in-place function that leaves its first argument as it is and returns the result."""

    def call(first: Any, *args: Any, **kwargs: Any) -> Any:
        own = first.clone()
        result = function(own, *args, **kwargs)
        return own if result is None else result

    return call


class _Recorder(TorchFunctionMode):
    def __init__(self, parameters: Mapping[int, str], inputs: Sequence[Tensor]) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self.where: dict[int, Ref] = {}
        self.alive: list[Any] = []  # an id is unique only among living tensors
        self.parameters = parameters
        self.owners: list[str] = [""]
        for tensor in inputs:
            self.leaf(tensor, "input")

    def leaf(self, tensor: Tensor, name: str, label: str = "") -> Ref:
        if id(tensor) not in self.where:
            value = tensor.detach()
            self.append(name, lambda: value, (), {}, tensor, label)
        return self.where[id(tensor)]

    def append(
        self, name: str, function: Any, args: Any, kwargs: Any, result: Any, label: str = ""
    ) -> None:
        index = len(self.calls)
        value = result.detach() if isinstance(result, Tensor) else result
        call = Call(index, name, function, args, kwargs, value, self.owners[-1], label)
        self.calls.append(call)
        self.alive.append(result)
        if isinstance(result, Tensor):
            self.where[id(result)] = Ref(index)
        elif isinstance(result, tuple | list):
            for i, item in enumerate(result):
                if isinstance(item, Tensor):
                    self.where[id(item)] = Ref(index, i)

    def ref(self, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        label = self.parameters.get(id(leaf))
        return self.leaf(leaf, "constant" if label is None else "parameter", label or "")

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", str(func))
        if name in DECOMPOSED:
            with self:
                return DECOMPOSED[name](*args, **kwargs)
        if name == "__get__":
            name = func.__self__.__name__
        in_place = name in IN_PLACE or (name.endswith("_") and not name.endswith("__"))
        if kwargs.get("inplace"):
            kwargs["inplace"] = False
        places, named = mapped(tuple(args), self.ref), mapped(kwargs, self.ref)
        if in_place and isinstance(args[0], Tensor):
            old = self.where[id(args[0])]
            if old.item is None:
                self.calls[old.call].value = args[0].detach().clone()
        result = func(*args, **kwargs)
        if in_place:
            target = args[0] if result is None else result
            self._keep(name, _functional(func), places, named, target, snapshot=True)
        elif any(result is arg for arg in args):
            pass  # a cast to the same type, dropout at rest: no step of its own
        elif isinstance(result, Tensor) or (
            isinstance(result, tuple | list) and any(isinstance(item, Tensor) for item in result)
        ):
            self._keep(name, func, places, named, result)
        return result

    def _keep(
        self, name: str, func: Any, args: Any, kwargs: Any, result: Any, snapshot: bool = False
    ) -> None:
        name = NAMES.get(name, name)
        signature = SIGNATURES.get(name, ())
        if len(args) <= len(signature) and not (name == "where" and len(args) + len(kwargs) < 3):
            aliases = {"self": "input", "axis": "dim", "x": "input"}
            kwargs = {aliases.get(key, key): value for key, value in kwargs.items()}
            kwargs = {**dict(zip(signature, args, strict=False)), **kwargs}
            first = signature[0]
            func, args = _by_name(func, signature), ()
            assert first in kwargs or name in ("cat", "stack", "where"), name
        self.append(name, func, args, kwargs, result)
        if snapshot:
            self.calls[-1].value = result.detach().clone()


def _by_name(func: Any, signature: Sequence[str]) -> Callable[..., Any]:
    """`func` called with arguments by name: those that it has by position go first."""

    def call(**kwargs: Any) -> Any:
        first = []
        for name in signature:
            if name not in kwargs:
                break
            first.append(kwargs[name])
        rest = {key: value for key, value in kwargs.items() if key not in signature[: len(first)]}
        return func(*first, **rest)

    return call


def record(module: nn.Module, inputs: tuple[Sequence[Any], Mapping[str, Any]]) -> Graph:
    """Run `module` on (args, kwargs) once; `module` is left as it is."""
    args, kwargs = inputs
    names = {id(p): name for name, p in module.named_parameters(remove_duplicate=False)}
    names |= {id(b): name for name, b in module.named_buffers(remove_duplicate=False)}
    recorder = _Recorder(names, tensors_of((list(args), dict(kwargs))))
    blocks: list[Block] = []
    opened: list[tuple[int, Ref | None]] = []

    def first(value: Any) -> Ref | None:
        return next((recorder.where.get(id(tensor)) for tensor in tensors_of(value)), None)

    def enter(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: Any, kwargs: Any) -> None:
            recorder.owners.append(name)
            opened.append((len(recorder.calls), first((args, kwargs))))

        return hook

    def leave(name: str) -> Callable[..., None]:
        def hook(own: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            recorder.owners.pop()
            start, source = opened.pop()
            blocks.append(Block(name, own, source, first(output), start, len(recorder.calls)))

        return hook

    hooks: list[Any] = []
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        for name, child in module.named_modules():
            hooks.append(child.register_forward_pre_hook(enter(name), with_kwargs=True))
            hooks.append(child.register_forward_hook(leave(name), with_kwargs=True))
        with torch.no_grad(), contextlib.ExitStack() as stack:
            stack.enter_context(recorder)
            output = module(*args, **kwargs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for hook in hooks:
            hook.remove()
    found = tensors_of(output)
    return Graph(recorder.calls, blocks, [recorder.where[id(tensor)] for tensor in found])
