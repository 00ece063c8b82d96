"""Faults between the steps: residuals, the place of norms, a value taken from elsewhere."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from jaxformer.porting.causes.activations import activations
from jaxformer.porting.causes.graph import Call, Edits, Graph, Node, Ref
from jaxformer.porting.causes.norms import Norm, norms
from jaxformer.porting.causes.sites import Site, ancestors, descends, tensor

MOST_REWIRED = 1200
MOST_CANDIDATES = 12
UNARY = ("dropout", "max_pool2d", "avg_pool2d", "max_pool1d", "avg_pool1d", "flatten")


def _sums(graph: Graph) -> Iterator[tuple[Call, Ref, Ref]]:
    """(sum, x, branch): additions of a value and something computed from it."""
    for call in graph.named("add"):
        refs = [r for r in call.refs if tensor(graph, r) is not None]
        if len(refs) != 2 or graph.value(refs[0]).shape != graph.value(refs[1]).shape:
            continue
        for x, branch in (refs, refs[::-1]):
            if x != branch and descends(graph, branch, x):
                yield call, x, branch
                break
        else:
            source = _common(graph, *refs)
            if source is not None:
                yield call, refs[1], refs[0]


def _common(graph: Graph, a: Ref, b: Ref) -> Ref | None:
    """A value that both depend on, such as the input of a block whose shortcut has a kernel."""
    behind = set(ancestors(graph, graph[a], 12))
    return next(
        (r for r in ancestors(graph, graph[b], 12) if r in behind and graph[r].name != "parameter"),
        None,
    )


def residual(graph: Graph) -> Iterable[Site]:
    """A residual that is left out, taken of the normed value, or taken elsewhere."""
    found = norms(graph)
    for call, x, branch in _sums(graph):
        variants: dict[str, Edits] = {
            "no residual": {call.index: Node(lambda b: b, (branch,))},
            "no branch": {call.index: Node(lambda x: x, (x,))},
            "residual subtracted": {call.index: Node(lambda b, x: b - x, (branch, x))},
            "branch subtracted": {call.index: Node(lambda b, x: x - b, (branch, x))},
            "residual added twice": {call.index: Node(lambda b, x: b + 2 * x, (branch, x))},
            "residual halved": {call.index: Node(lambda b, x: b + x / 2, (branch, x))},
            "branch added twice": {call.index: Node(lambda b, x: 2 * b + x, (branch, x))},
            "sum halved": {call.index: Node(lambda b, x: (b + x) / 2, (branch, x))},
            "sum over sqrt(2)": {call.index: Node(lambda b, x: (b + x) / 2**0.5, (branch, x))},
        }
        for norm in found:
            if norm.x == x and descends(graph, branch, norm.call.index):
                y = norm.call.ref
                variants["residual of the normed value"] = {
                    call.index: Node(lambda b, y: b + y, (branch, y))
                }
            if norm.call.ref == x and norm.x.call < call.index:
                variants["residual of the value before the norm"] = {
                    call.index: Node(lambda b, y: b + y, (branch, norm.x))
                }
        yield Site(call.owner, variants)
        elsewhere: dict[str, Edits] = {}
        for ref in _candidates(graph, x, call)[:12]:
            elsewhere[f"residual of call {ref.call} ({graph[ref].name})"] = {
                call.index: Node(lambda b, y: b + y, (branch, ref))
            }
        yield Site(call.owner, elsewhere)


def added_residual(graph: Graph) -> Iterable[Site]:
    """A residual around a module where PyTorch has none."""
    for block in graph.blocks:
        if block.input is None or block.output is None or block.output.item is not None:
            continue
        x, y = tensor(graph, block.input), tensor(graph, block.output)
        if x is None or y is None or x.shape != y.shape or block.input == block.output:
            continue
        call = graph[block.output]
        if call.index in graph.live_indices and block.input.call != call.index:
            yield Site(
                block.name,
                {"a residual": {call.index: graph.then(call, lambda y, x: y + x, block.input)}},
            )


def norm_placement(graph: Graph) -> Iterable[Site]:
    """Norms before the branches, not after the sums; before or after another step."""
    found = norms(graph)
    sums = list(_sums(graph))
    for norm in found:
        function = graph.between(norm.x, norm.call)
        y = norm.call.ref
        for call, x, branch in sums:
            if x == norm.x and descends(graph, branch, y):
                # x + f(n(x)): n(x + f(x)), x + n(f(x)), x + f(x) normed elsewhere
                off = {norm.call.index: Node(lambda x: x, (norm.x,))}
                outside: Edits = {**off, call.index: graph.then(call, function)}
                yield Site(norm.call.owner.rpartition(".")[0], {"norm after the sum": outside})
                on_branch = {
                    **off,
                    call.index: Node(lambda x, b, f=function: x + f(b), (x, branch)),
                }
                yield Site(norm.call.owner.rpartition(".")[0], {"norm of the branch": on_branch})
            elif norm.x == call.ref:
                # n(x + f(x)): x + f(n(x)), x + n(f(x)), n(x) + f(x)
                off = {norm.call.index: Node(lambda x: x, (norm.x,))}
                fresh = graph.fresh()
                before: dict[int, Node] = {**off, fresh: Node(function, (x,))}
                for user in graph.users_of(graph[x]):
                    if user.index != call.index and descends(graph, branch, user.index):
                        before[user.index] = graph.rewired(user, x, Ref(fresh))
                yield Site(norm.call.owner.rpartition(".")[0], {"norm before the branch": before})
                both: dict[int, Node] = {**before}
                both[call.index] = graph.rewired(call, x, Ref(fresh))
                yield Site(
                    norm.call.owner.rpartition(".")[0], {"norm before branch and residual": both}
                )
                on_branch = {
                    **off,
                    call.index: Node(lambda x, b, f=function: x + f(b), (x, branch)),
                }
                yield Site(norm.call.owner.rpartition(".")[0], {"norm of the branch": on_branch})
            elif branch == y:
                # x + n(f(x)): n(x + f(x)), x + f(n(x))
                outside = {
                    call.index: Node(lambda x, b, f=function: f(x + b), (x, norm.x)),
                }
                yield Site(norm.call.owner.rpartition(".")[0], {"norm after the sum": outside})
                fresh = graph.fresh()
                before = {
                    norm.call.index: Node(lambda x: x, (norm.x,)),
                    fresh: Node(function, (x,)),
                }
                for user in graph.users_of(graph[x]):
                    if user.index != call.index and descends(graph, branch, user.index):
                        before[user.index] = graph.rewired(user, x, Ref(fresh))
                yield Site(norm.call.owner.rpartition(".")[0], {"norm before the branch": before})
        yield Site(norm.call.owner.rpartition(".")[0], dict(_exchanged(graph, norm)))
    for first in found:
        for second in found:
            if first.call.index < second.call.index and first.call.owner != second.call.owner:
                f = graph.between(first.x, first.call)
                g = graph.between(second.x, second.call)
                edits = {
                    first.call.index: Node(g, (first.x,)),
                    second.call.index: Node(f, (second.x,)),
                }
                text = f"{first.call.owner} and {second.call.owner} exchanged"
                yield Site("", {text: edits})


def _exchanged(graph: Graph, norm: Norm) -> Iterator[tuple[str, Edits]]:
    """A norm and the step before or after it in the other order."""
    function = graph.between(norm.x, norm.call)
    acts = {a.x: a for a in activations(graph)}
    ends = {a.call.ref: a for a in activations(graph)}
    y = norm.call.ref
    if y in acts:
        a = acts[y]
        act = graph.between(y, a.call)
        yield (
            "norm after the activation",
            {
                norm.call.index: Node(lambda x: x, (norm.x,)),
                a.call.index: Node(lambda x, f=function, g=act: f(g(x)), (norm.x,)),
            },
        )
    if norm.x in ends:
        a = ends[norm.x]
        act = graph.between(a.x, a.call)
        yield (
            "norm before the activation",
            {norm.call.index: Node(lambda x, f=function, g=act: g(f(x)), (a.x,))},
        )
    source = graph[norm.x]
    if source.name == "add" and len(source.refs) == 2:
        one, two = source.refs
        for which, first, second in (("first", one, two), ("second", two, one)):
            yield (
                f"norm of the {which} summand alone",
                {norm.call.index: Node(lambda x, z, f=function: f(x) + z, (first, second))},
            )
    if source.name in ("linear", "conv1d", "conv2d", "max_pool2d", "avg_pool2d", "mean") and (
        source.data is not None
    ):
        yield (
            f"norm before {source.name}",
            {
                norm.call.index: Node(
                    lambda x, f=function, c=source: _again(c, f(x)), (source.data,)
                )
            },
        )
    for user in graph.users_of(norm.call):
        if user.name in (
            "linear",
            "conv1d",
            "conv2d",
            "max_pool2d",
            "avg_pool2d",
            "mean",
            "getitem",
        ):
            fresh = graph.fresh()
            yield (
                f"norm after {user.name}",
                {
                    fresh: graph.rewired(user, y, norm.x),
                    user.index: Node(function, (Ref(fresh),)),
                },
            )


def _again(call: Call, x: Tensor) -> Tensor:
    data = call.data
    args = tuple(x if a == data else a for a in call.args)
    kwargs = {k: x if v == data else v for k, v in call.kwargs.items()}
    if any(isinstance(v, Ref) for v in (*args, *kwargs.values())):
        raise ValueError("needs other values")
    result: Tensor = call.function(*args, **kwargs)
    return result


def _candidates(graph: Graph, ref: Ref, call: Call) -> list[Ref]:
    """Other values of the same shape that are known before `call`, nearest first."""
    value = graph.value(ref)
    found: list[Ref] = []
    earlier = [c for c in reversed(graph.calls) if c.name not in ("parameter", "input")]
    for other in [*(c for c in graph.calls if c.name == "input"), *earlier]:
        if other.index == call.index or len(found) >= MOST_CANDIDATES:
            continue
        items = enumerate(other.value) if isinstance(other.value, tuple | list) else ()
        for item, v in ((None, other.value), *items):
            new = Ref(other.index, item)
            if (
                isinstance(v, Tensor)
                and v.shape == value.shape
                and v.dtype == value.dtype
                and new != ref
                and not torch.equal(v, value)
                and (other.index < call.index or not descends(graph, other, call))
            ):
                found.append(new)
    return found


READERS = (
    *("linear", "conv1d", "conv2d", "matmul", "addmm", "layer_norm", "rms_norm", "batch_norm"),
    *("mul", "cat", "stack", "einsum", "embedding", "add", "getitem", "sub"),
)


def wrong_source(graph: Graph) -> Iterable[Site]:
    """A value read from elsewhere."""
    count = 0
    for call in graph.named(*READERS):
        for ref in dict.fromkeys(call.refs):
            value = graph.value(ref)
            if not isinstance(value, Tensor) or graph[ref].name == "parameter" or not value.dim():
                continue
            variants: dict[str, Edits] = {}
            for new in _candidates(graph, ref, call)[:10]:
                count += 1
                if count > MOST_REWIRED:
                    return
                names = [f"{_named(graph, r)} (call {r.call})" for r in (new, ref)]
                text = " read for ".join(names)
                variants[text] = {call.index: graph.rewired(call, ref, new)}
            yield Site(call.owner, variants)


def one_row(graph: Graph) -> Iterable[Site]:
    """One row of an embedding for every token: all of the first type, of the first position."""
    for call in graph.named("embedding"):
        if len(graph.value(call.kwargs["input"]).unique()) > 1:
            first = graph.changed(
                call, lambda input, call=call, **rest: call.function(input=input * 0, **rest)
            )
            yield Site(call.owner, {"the first row for all": {call.index: first}})


def _named(graph: Graph, ref: Ref) -> str:
    call = graph[ref]
    block = next((b for b in graph.blocks if b.output == ref and b.name), None)
    if block is not None:
        return block.name
    return f"input {call.index}" if call.name == "input" else call.label or call.name


def missing_module(graph: Graph) -> Iterable[Site]:
    """A module of equal input and output shape that is passed over."""
    for block in graph.blocks:
        if block.input is None or block.output is None or block.output.item is not None:
            continue
        x, y = tensor(graph, block.input), tensor(graph, block.output)
        if x is None or y is None or x.shape != y.shape or block.input.call >= block.output.call:
            continue
        edits: Edits = {block.output.call: Node(lambda x: x, (block.input,))}
        yield Site(block.name, {f"{block.name or 'it'} left out": edits})
