"""A forward pass of PyTorch as a graph of calls that can be changed and evaluated again.

`record.py` runs a module once under a `TorchFunctionMode` and keeps every call with its arguments
and its value. An edit gives a call another function or other arguments; `Graph.evaluate` recomputes
what depends on it and takes every other value from the record, so thousands of faults can be tried
on one pass, and a value can be rewired to any other.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

LEAVES = ("input", "parameter", "constant")
"""Names of the calls that stand for tensors which no call computes."""


@dataclass(frozen=True)
class Ref:
    """The value of a call, or one item of it where it returns several."""

    call: int
    item: int | None = None


SAME = 1e-6
"""Of the norm: what two runs of the same calls differ by at most."""
_PLAIN = (Ref, Tensor, int, float, type(None))


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

    @functools.cached_property
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

    @functools.cached_property
    def refs(self) -> list[Ref]:
        return list(refs_of((self.args, self.kwargs)))


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
    if isinstance(value, _PLAIN):
        return change(value)
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


def equal(value: Any, other: Tensor) -> bool:
    """Whether a call gives these numbers: where it computes in float32 they are rounded."""
    if not isinstance(value, Tensor) or value.shape != other.shape:
        return False
    if value.is_floating_point() != other.is_floating_point():
        return False
    a, b = (torch.nan_to_num(x.double(), nan=0.0, posinf=1.0, neginf=-1.0) for x in (value, other))
    return bool(torch.linalg.vector_norm(a - b) <= SAME * torch.linalg.vector_norm(b))


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
        self.inputs = sum(1 << call.index for call in self.calls if call.name == "input")

    @functools.cached_property
    def sources(self) -> list[int]:
        """For each call what its value depends on, and itself: bit i stands for call i."""
        found: list[int] = []
        for call in self.calls:
            bits = 1 << call.index
            for ref in call.refs:
                bits |= found[ref.call]
            found.append(bits)
        return found

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
                node: Node | Call = edits[index] if index in edits else self.calls[index]
                waiting = [
                    ref.call for ref in node.refs if ref.call in dirty and ref.call not in values
                ]
                if waiting:
                    if index in entered:
                        raise CycleError(str(index))
                    entered.add(index)
                    stack += waiting
                    continue
                kwargs = mapped(dict(node.kwargs), lookup)
                values[index] = node.function(*mapped(node.args, lookup), **kwargs)
                stack.pop()
        return [lookup(ref) for ref in self.outputs]

    def stretch(self, known: Sequence[Tensor], last: Tensor) -> "Graph | None":
        """The part from values that are taken as given to the first call that gives `last`."""
        end = next((call for call in self.calls if equal(call.value, last)), None)
        if end is None:
            return None
        calls = [
            dataclasses.replace(call, name="input", args=(), kwargs={})
            if call is not end and any(equal(call.value, value) for value in known)
            else call
            for call in self.calls
        ]
        return Graph(calls, self.blocks, [end.ref])

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
