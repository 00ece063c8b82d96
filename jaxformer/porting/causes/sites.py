"""Places in a graph where a fault may be, found by structure and by value.

A fault is tried at every place of its kind: at all of them together (a port that errs in one layer
mostly errs in all), at those of one module, and at each alone.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from jaxformer.porting.causes.graph import LEAVES, Call, Edits, Graph, Node, Ref

LAYOUT = (
    *("view", "reshape", "flatten", "unflatten", "transpose", "permute", "contiguous", "squeeze"),
    *("unsqueeze", "expand", "mT", "T", "t", "movedim", "clone", "to", "float", "double", "type"),
    *("getitem", "view_as", "reshape_as", "expand_as", "type_as", "detach", "repeat"),
)
"""Functions that move numbers but compute none."""

PRODUCTS = ("matmul", "einsum", "baddbmm")
MOST_SITES = 16


class Number(NamedTuple):
    """A fault with a positive number in it, which the search solves for."""

    make: Callable[[float], Edits]
    starts: tuple[float, ...]


Variant = Edits | Number


class Site(NamedTuple):
    """One place: where it is, and the edits of every variant of the fault by its description."""

    where: str
    variants: Mapping[str, Variant]


class Mutant(NamedTuple):
    """A graph with one fault: its description and the edits that plant it."""

    what: str
    edits: Variant
    everywhere: bool
    """Whether it is at every place where it can be."""


Fault = Callable[[Graph], Iterable[Site]]
T = TypeVar("T")


def remembered(find: Callable[[Graph], T]) -> Callable[[Graph], T]:
    """`find`, which looks at a graph only once."""

    def found(graph: Graph) -> T:
        if find not in graph.memory:
            graph.memory[find] = find(graph)
        result: T = graph.memory[find]
        return result

    return found


def mutants(sites: Iterable[Site]) -> Iterator[Mutant]:
    """Every variant at all sites, at those of each place, and at each site."""
    found = list(sites)
    for what in dict.fromkeys(what for site in found for what in site.variants):
        having = [(site.where, site.variants[what]) for site in found if what in site.variants]
        places: dict[str, list[Variant]] = {}
        for where, edits in having:
            places.setdefault(where, []).append(edits)
        yield Mutant(what, _union(edits for _, edits in having), True)
        if len(places) > 1:
            for where, several in places.items():
                yield Mutant(f"{what} in {where}" if where else what, _union(several), False)
        if len(places) < len(having) <= MOST_SITES:
            for where, edits in having:
                if len(places[where]) > 1:
                    yield Mutant(f"{what} at one place of {where or 'it'}", edits, False)


def _union(several: Iterable[Variant]) -> Variant:
    found = list(several)
    numbers = [each for each in found if isinstance(each, Number)]
    if numbers:
        return Number(lambda p: _joined(each.make(p) for each in numbers), numbers[0].starts)
    return _joined(each for each in found if not isinstance(each, Number))


def _joined(several: Iterable[Edits]) -> Edits:
    edits: dict[int, Node] = {}
    for each in several:
        edits |= each
    return edits


def tensor(graph: Graph, ref: object) -> Tensor | None:
    """The floating-point value of a Ref, else None."""
    value = graph.value(ref) if isinstance(ref, Ref) else None
    return value if isinstance(value, Tensor) and value.is_floating_point() else None


def same(a: Tensor, b: Tensor, tolerance: float = 1e-6) -> bool:
    if a.shape != b.shape:
        return False
    a, b = a.double(), b.double()
    if not bool(torch.isfinite(b).all()):
        return False
    return bool(torch.linalg.vector_norm(a - b) <= tolerance * torch.linalg.vector_norm(b))


def ancestors(
    graph: Graph, call: Call, steps: int, names: Iterable[str] | None = None
) -> list[Ref]:
    """The values that `call` depends on within so many calls, nearest first.

    With `names`, only calls of these functions are looked behind.
    """
    allowed = None if names is None else set(names)
    found: dict[Ref, None] = {}
    level = list(call.refs)
    for _ in range(steps):
        found |= dict.fromkeys(level)
        level = [
            ref
            for parent in level
            for ref in graph[parent].refs
            if ref not in found and (allowed is None or graph[parent].name in allowed)
        ]
    return list(found)


def descends(graph: Graph, call: Call | Ref | int, source: Call | Ref | int) -> bool:
    """Whether the value of `call` depends on that of `source`."""
    return bool(graph.sources[_index(call)] >> _index(source) & 1)


def _index(place: Call | Ref | int) -> int:
    if isinstance(place, int):
        return place
    return place.index if isinstance(place, Call) else place.call


def behind_layout(graph: Graph, ref: Ref) -> Ref:
    """The value that `ref` is a layout of."""
    while graph[ref].name in LAYOUT and (data := graph[ref].data) is not None:
        ref = data
    return ref


def is_constant(graph: Graph, ref: Ref) -> bool:
    """Whether no input of the module reaches it."""
    return not graph.sources[ref.call] & graph.inputs


def leaf_of(graph: Graph, ref: Ref) -> Call | None:
    """The parameter, input or constant that `ref` is a layout of."""
    call = graph[behind_layout(graph, ref)]
    return call if call.name in LEAVES else None


class Attention(NamedTuple):
    """Scores, changed by the calls of `chain`, then a softmax, then its product with v.

    The scores are a product q k^T; where they are none, as in a graph attention network, a mask
    among the calls of the chain tells them from the logits of a classifier.
    """

    scores: Call
    chain: list[Call]
    softmax: Call
    product: Call | None


LOG_SOFTMAX = ("log_softmax", "cross_entropy")
"""Functions whose input may be masked scores as well."""
CHAIN = {
    *("mul", "div", "add", "sub", "masked_fill", "masked_fill_", "where", "clamp", "tanh", "to"),
    *("float", "double", "view", "reshape", "unsqueeze", "squeeze", "nan_to_num", "softcap"),
}


@remembered
def attentions(graph: Graph) -> list[Attention]:
    """Every softmax over scores."""
    found = []
    for softmax in graph.live:
        if not is_softmax(graph, softmax) and softmax.name not in LOG_SOFTMAX:
            continue
        chain, ref = [], softmax_input(graph, softmax)
        scores = None
        while ref is not None:
            call = graph[ref]
            if call.name in PRODUCTS:
                scores = call
                break
            if call.name not in CHAIN:
                break
            chain.append(call)
            operands = [r for r in call.refs if isinstance(graph.value(r), Tensor)]
            reaching = [r for r in operands if _from_product(graph, r)]
            reaching += [r for r in operands if graph.value(r).shape == call.value.shape]
            ref = reaching[0] if reaching else None
        if scores is None and ref is not None and any("mask" in c.name for c in chain):
            scores = graph[ref]
        if scores is None:
            continue
        found.append(Attention(scores, chain[::-1], softmax, _product_after(graph, softmax)))
    return found


def _from_product(graph: Graph, ref: Ref) -> bool:
    while graph[ref].name not in PRODUCTS:
        if graph[ref].name not in CHAIN:
            return False
        following = [r for r in graph[ref].refs if _from_product(graph, r)]
        if not following:
            return False
        ref = following[0]
    return True


def _product_after(graph: Graph, call: Call, steps: int = 6) -> Call | None:
    level = [call]
    for _ in range(steps):
        level = [user for each in level for user in graph.users_of(each)]
        for user in level:
            if user.name in PRODUCTS:
                return user
    return None


def is_softmax(graph: Graph, call: Call) -> bool:
    return call.name == "softmax" or (call.name == "div" and softmax_input(graph, call) is not None)


def softmax_input(graph: Graph, call: Call) -> Ref | None:
    """What a softmax is taken of: of F.softmax, or of exp(x - max) / sum."""
    if call.name in ("softmax", *LOG_SOFTMAX):
        ref: Ref = call.kwargs["input"]
        return ref
    y = tensor(graph, call.ref)
    refs = call.refs
    if y is None or len(refs) != 2 or graph[refs[0]].name != "exp" or y.dim() == 0:
        return None
    exponent = graph[refs[0]].data
    if exponent is None:
        return None
    source = graph[exponent]
    inner = source.refs[0] if source.name == "sub" and source.refs else exponent
    for ref in (inner, exponent):
        x = tensor(graph, ref)
        if x is not None and x.shape == y.shape:
            for dim in range(x.dim()):
                if same(torch.softmax(x, dim), y):
                    return ref
    return None
