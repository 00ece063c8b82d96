"""A forward pass of PyTorch as a graph of calls that can be changed and evaluated again.

`record` runs a module once under a `TorchFunctionMode` and keeps every call with its arguments and
its value. What PyTorch computes in one call but a port spells out (attention, recurrent layers) is
recorded as the calls of `decompose.py`. An edit gives a call another function or other arguments;
`Graph.evaluate` recomputes what depends on it and takes every other value from the record, so
thousands of faults can be tried on one pass, and a value can be rewired to any other.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from jaxformer.porting.causes.decompose import DECOMPOSED

LEAVES = ("input", "parameter", "constant")
"""Names of the calls that stand for tensors which no call computes."""

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
_AVERAGE = ("input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad")
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


@dataclass(frozen=True)
class Ref:
    """The value of a call, or one item of it where it returns several."""

    call: int
    item: int | None = None


@dataclass
class Call:
    """One call: a function, its arguments with a Ref for every tensor, and its value."""

    index: int
    name: str
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    value: Any
    owner: str
    label: str = ""

    def __getitem__(self, name: str) -> Any:
        return self.kwargs.get(name)

    @property
    def refs(self) -> list[Ref]:
        return list(refs_of((self.args, self.kwargs)))

    @property
    def ref(self) -> Ref:
        return Ref(self.index)

    @property
    def data(self) -> Ref | None:
        """The first tensor that is passed to it."""
        return next(iter(self.refs), None)

    def output(self, item: int | None) -> Any:
        return self.value if item is None else self.value[item]


@dataclass(frozen=True)
class Node:
    """What a call is replaced by; Refs in the arguments stand for values of the graph."""

    function: Callable[..., Any]
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)


Edits = Mapping[int, Node]


@dataclass
class Block:
    """One call of a module: its name, its first tensor and what it returned."""

    name: str
    module: nn.Module
    input: Ref | None
    output: Ref | None
    start: int
    end: int


def refs_of(value: Any) -> Iterator[Ref]:
    if isinstance(value, Ref):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from refs_of(item)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from refs_of(item)
    elif isinstance(value, slice):
        yield from refs_of((value.start, value.stop, value.step))


def mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """`value` with `change` applied to every leaf of its tuples, lists, dicts and slices."""
    if isinstance(value, Mapping):
        return {key: mapped(item, change) for key, item in value.items()}
    if isinstance(value, tuple | list):
        items = [mapped(item, change) for item in value]
        return items if isinstance(value, list) else tuple(items)
    if isinstance(value, slice):
        return slice(*(mapped(part, change) for part in (value.start, value.stop, value.step)))
    return change(value)


def tensors_of(value: Any) -> list[Tensor]:
    """Every tensor of an output, in order: of tuples, lists, dicts and dataclasses."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        return [tensor for item in value.values() for tensor in tensors_of(item)]
    if isinstance(value, tuple | list):
        return [tensor for item in value for tensor in tensors_of(item)]
    if hasattr(value, "__dataclass_fields__"):
        return [t for name in value.__dataclass_fields__ for t in tensors_of(getattr(value, name))]
    return []


class CycleError(ValueError):
    """An edit makes a value depend on itself."""


@dataclass
class Graph:
    """The recorded pass; `outputs` are the Refs of the tensors that the module returned."""

    calls: list[Call]
    blocks: list[Block]
    outputs: list[Ref]
    users: dict[int, list[int]] = field(default_factory=dict)
    added: int = 0
    memory: dict[Any, Any] = field(default_factory=dict)
    """What was found in the graph once."""

    def __post_init__(self) -> None:
        for call in self.calls:
            for ref in dict.fromkeys(ref.call for ref in call.refs):
                self.users.setdefault(ref, []).append(call.index)
        needed: set[int] = set()
        pending = [ref.call for ref in self.outputs]
        while pending:
            index = pending.pop()
            if index not in needed:
                needed.add(index)
                pending += [ref.call for ref in self.calls[index].refs]
        self.live = [call for call in self.calls if call.index in needed]
        """The calls that the outputs depend on, in order."""
        self.live_indices = needed

    def __getitem__(self, ref: Ref | int) -> Call:
        return self.calls[ref if isinstance(ref, int) else ref.call]

    def value(self, ref: Ref) -> Any:
        return self.calls[ref.call].output(ref.item)

    def named(self, *names: str) -> list[Call]:
        """The live calls of these functions."""
        return [call for call in self.live if call.name in names]

    def users_of(self, call: Call | int) -> list[Call]:
        """The live calls that read its value."""
        index = call if isinstance(call, int) else call.index
        return [self.calls[i] for i in self.users.get(index, ()) if i in self.live_indices]

    def evaluate(self, edits: Edits) -> list[Any]:
        """The outputs with some calls replaced.

        Raises:
            CycleError: a call depends on itself.
        """
        dirty, pending = set(edits), list(edits)
        while pending:
            for user in self.users.get(pending.pop(), ()):
                if user not in dirty:
                    dirty.add(user)
                    pending.append(user)
        values: dict[int, Any] = {}

        def parts(index: int) -> tuple[Callable[..., Any], Any, Any]:
            node: Node | Call = edits[index] if index in edits else self.calls[index]
            return node.function, node.args, node.kwargs

        def lookup(leaf: Any) -> Any:
            if not isinstance(leaf, Ref):
                return leaf
            value = values[leaf.call] if leaf.call in dirty else self.calls[leaf.call].value
            return value if leaf.item is None else value[leaf.item]

        entered: set[int] = set()
        stack = [ref.call for ref in self.outputs if ref.call in dirty]
        with torch.no_grad():
            while stack:
                index = stack[-1]
                if index in values:
                    stack.pop()
                    continue
                function, args, kwargs = parts(index)
                waiting = [
                    ref.call
                    for ref in refs_of((args, kwargs))
                    if ref.call in dirty and ref.call not in values
                ]
                if waiting:
                    if index in entered:
                        raise CycleError(str(index))
                    entered.add(index)
                    stack += waiting
                    continue
                values[index] = function(*mapped(args, lookup), **mapped(dict(kwargs), lookup))
                stack.pop()
        return [lookup(ref) for ref in self.outputs]

    def fresh(self) -> int:
        """The index of a call that edits may add."""
        self.added += 1
        return len(self.calls) + self.added

    def between(self, source: Ref, last: Call) -> Callable[[Any], Any]:
        """What the calls from `source` to `last` compute, as a function of that value."""
        needed, pending = set(), [last.index]
        while pending:
            index = pending.pop()
            if index > source.call and index not in needed:
                needed.add(index)
                pending += [ref.call for ref in self.calls[index].refs if ref != source]
        path = [self.calls[index] for index in sorted(needed)]

        def function(x: Any) -> Any:
            values: dict[int, Any] = {}

            def lookup(leaf: Any) -> Any:
                if not isinstance(leaf, Ref):
                    return leaf
                if leaf == source:
                    return x
                value = values.get(leaf.call, self.calls[leaf.call].value)
                return value if leaf.item is None else value[leaf.item]

            for call in path:
                values[call.index] = call.function(
                    *mapped(call.args, lookup), **mapped(call.kwargs, lookup)
                )
            return values[last.index]

        return function

    def changed(
        self, call: Call, function: Callable[..., Any] | None = None, **kwargs: Any
    ) -> Node:
        """`call` with another function or with other named arguments."""
        return Node(function or call.function, call.args, {**call.kwargs, **kwargs})

    def then(self, call: Call, change: Callable[..., Any], *more: Any) -> Node:
        """`call`, and `change` of its value and of the values of `more`."""
        n = len(more)

        def node(*args: Any, **kwargs: Any) -> Any:
            rest = args[n:] if n else args
            return change(call.function(*rest, **kwargs), *args[:n])

        return Node(node, (*more, *call.args), call.kwargs)

    def item_then(self, ref: Ref, change: Callable[[Any], Any]) -> dict[int, Node]:
        """Edits under which every reader of `ref` gets `change` of it."""
        call = self.calls[ref.call]
        if ref.item is None:
            return {call.index: self.then(call, change)}
        item = ref.item

        def node(value: Any) -> Any:
            return tuple(change(v) if i == item else v for i, v in enumerate(value))

        return {call.index: self.then(call, node)}

    def rewired(self, call: Call, old: Ref, new: Ref) -> Node:
        """`call` with every `old` among its arguments replaced by `new`."""
        swap = lambda leaf: new if leaf == old else leaf  # noqa: E731
        return Node(call.function, mapped(call.args, swap), mapped(call.kwargs, swap))


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
