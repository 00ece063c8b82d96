"""Faults of pooling, of labels and of routers."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from jaxformer.porting.causes.graph import Call, Edits, Graph, Node, Ref
from jaxformer.porting.causes.sites import (
    Site,
    ancestors,
    behind_layout,
    is_softmax,
    softmax_input,
    tensor,
)


def _reductions(dim: object, keepdim: bool) -> dict[str, Callable[[Tensor], Tensor]]:
    dims = tuple(dim) if isinstance(dim, list | tuple) else (dim,)

    def select(at: int) -> Callable[[Tensor], Tensor]:
        def take(x: Tensor) -> Tensor:
            (axis,) = dims
            y = x.select(axis, at)
            return y.unsqueeze(axis) if keepdim else y

        return take

    def keeping(function: Callable[..., Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda x: function(x, dim=dims, keepdim=keepdim)

    return {
        "mean": keeping(torch.mean),
        "sum": keeping(torch.sum),
        "maximum": keeping(torch.amax),
        "first": select(0),
        "last": select(-1),
        "second": select(1),
        "all but the first, mean": lambda x: _rest(x, dims, keepdim),
        "root of the number of tokens": lambda x: (
            x.sum(dims, keepdim=keepdim) / _count(x, dims) ** 0.5
        ),
        "mean of what is not hidden": lambda x: (
            torch.nan_to_num(x, neginf=0.0).sum(dims, keepdim=keepdim)
            / torch.isfinite(x).sum(dims, keepdim=keepdim)
        ),
        "one token less": lambda x: x.sum(dims, keepdim=keepdim) / (_count(x, dims) - 1),
    }


def _count(x: Tensor, dims: Iterable[int]) -> int:
    n = 1
    for dim in dims:
        n *= x.size(dim)
    return n


def _rest(x: Tensor, dims: tuple[int, ...], keepdim: bool) -> Tensor:
    (axis,) = dims
    return x.narrow(axis, 1, x.size(axis) - 1).mean(axis, keepdim=keepdim)


def pooling(graph: Graph) -> Iterable[Site]:
    """Mean, maximum, sum, first or last for each other; other borders of windows."""
    for call in graph.named("mean", "sum", "amax", "max"):
        dim, source = call["dim"], call.kwargs.get("input")
        if dim is None and call.name in ("mean", "sum") and call.data is not None:
            whole = torch.sum if call.name == "mean" else torch.mean
            node = Node(whole, (call.data,))
            yield Site(call.owner, {f"{whole.__name__} for {call.name}": {call.index: node}})
        if dim is None or not isinstance(source, Ref) or tensor(graph, source) is None:
            continue
        keepdim = bool(call["keepdim"])
        own = {"amax": "maximum", "max": "maximum"}.get(call.name, call.name)
        variants: dict[str, Edits] = {}
        for name, function in _reductions(dim, keepdim).items():
            if name != own:
                change = (lambda x, f=function: (f(x), None)) if call.name == "max" else function
                variants[f"{name} for {own}"] = {call.index: Node(change, (source,))}
        x = graph.value(source)
        for other in range(1, x.dim()):
            node = graph.changed(call, dim=other)
            variants[f"{own} over axis {other}"] = {call.index: node}
        yield Site(call.owner, variants)
    for call in graph.named("getitem", "select", "narrow"):
        source = call.data
        x = tensor(graph, source) if source is not None else None
        y = tensor(graph, call.ref)
        if source is None or x is None or y is None or y.dim() != x.dim() - 1:
            continue
        for axis in range(1, x.dim()):
            if x.shape[:axis] + x.shape[axis + 1 :] != y.shape:
                continue
            variants = {
                f"{name} for one": {call.index: Node(function, (source,))}
                for name, function in _reductions(axis, False).items()
            }
            yield Site(call.owner, variants)
    for call in graph.named("getitem", "gather"):
        data = call.data
        y = tensor(graph, call.ref)
        tokens = tensor(graph, data) if data is not None else None
        if data is None or tokens is None or y is None or len(call.refs) < 2:
            continue
        if tokens.dim() == 3 and y.numel() == tokens[:, 0].numel():
            last: Edits = {
                call.index: Node(lambda x, s=tuple(y.shape): x[:, -1].reshape(s), (data,))
            }
            yield Site(call.owner, {"the last token, padding or not": last})
    for call in graph.live:
        if "pool" in call.name:
            yield Site(call.owner, _windows(graph, call))
    for call in graph.named("interpolate"):
        yield Site(
            call.owner,
            {
                f"{mode}, align_corners {corners}": {
                    call.index: graph.changed(call, mode=mode, align_corners=corners)
                }
                for mode, corners in (
                    *(("nearest", None), ("nearest-exact", None), ("bilinear", False)),
                    *(("bilinear", True), ("bicubic", False), ("bicubic", True)),
                    *(("linear", False), ("linear", True)),
                )
            },
        )


def _windows(graph: Graph, call: Call) -> dict[str, Edits]:
    name = call.name
    n = int(name[-2]) if name[-1] == "d" and name[-2].isdigit() else 0
    source = call.kwargs.get("input", call.data)
    if not n or not isinstance(source, Ref):
        return {}
    variants: dict[str, Edits] = {}
    shape = call.value[0].shape if isinstance(call.value, tuple) else call.value.shape

    def put(what: str, function: Callable[[Tensor], Tensor]) -> None:
        variants[what] = {call.index: Node(function, (source,))}

    average = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[n - 1]
    maximum = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[n - 1]
    if name.startswith(("avg_pool", "max_pool")):
        kernel = call["kernel_size"]
        stride = call["stride"] if call["stride"] not in (None, []) else kernel
        padding = call["padding"] or 0
        ceil = bool(call["ceil_mode"])
        padded = tuple(
            p
            for p in reversed(padding if isinstance(padding, list | tuple) else [padding] * n)
            for _ in "12"
        )
        if name.startswith("max_pool"):
            put("mean for maximum", lambda x: average(x, kernel, stride, padding, ceil))
            put("mean of what is there", lambda x: average(x, kernel, stride, padding, ceil, False))
            put(
                "zeros at the borders",
                lambda x: maximum(F.pad(x, padded), kernel, stride, 0, ceil_mode=ceil),
            )
            put(
                "minimum for maximum",
                lambda x: -maximum(-x, kernel, stride, padding, ceil_mode=ceil),
            )
        else:
            put("maximum for mean", lambda x: maximum(x, kernel, stride, padding, ceil_mode=ceil))
            put("mean with the padding", lambda x: average(x, kernel, stride, padding, ceil, True))
            put(
                "mean without the padding",
                lambda x: average(x, kernel, stride, padding, ceil, False),
            )
        put(
            "sum for mean", lambda x: average(x, kernel, stride, padding, ceil) * _window(kernel, n)
        )
        window = [kernel] * n if isinstance(kernel, int) else list(kernel)
        steps = [stride] * n if isinstance(stride, int) else list(stride)
        pads = list(padded[::2])[::-1]
        for what, side in (("behind", 0), ("in front", 1)):
            flat = []
            for axis in reversed(range(n)):
                p = 2 * pads[axis]
                flat += [0, p] if side == 0 else [p, 0]
            fill = -torch.inf if name.startswith("max") else 0.0
            pool = maximum if name.startswith("max") else average
            put(
                f"all padding {what}",
                lambda x, f=flat, fill=fill, pool=pool: pool(
                    F.pad(x, f, value=fill), window, steps
                ),
            )
    if name.startswith("adaptive"):
        to = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)[n - 1]
        top = (F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d)[n - 1]
        size = tuple(shape[-n:])
        put(
            "mean for maximum" if "max" in name else "maximum for mean",
            lambda x: (to if "max" in name else top)(x, size),
        )
        put(
            "sum for mean",
            lambda x: to(x, size) * (x[0, 0].numel() // max(1, to(x, size)[0, 0].numel())),
        )
    return variants


def _window(kernel: Any, n: int) -> int:
    if isinstance(kernel, int):
        return kernel**n
    size = 1
    for k in kernel:
        size *= int(k)
    return size


def padded_pooling(graph: Graph) -> Iterable[Site]:
    """A mean or maximum over tokens that counts padding."""
    for call in graph.named("div"):
        refs = call.refs
        y = tensor(graph, call.ref)
        if y is None or len(refs) != 2 or graph[refs[0]].name != "sum":
            continue
        total = graph[refs[0]]
        source = total.kwargs.get("input")
        dim, keepdim = total["dim"], bool(total["keepdim"])
        if not isinstance(source, Ref) or dim is None:
            continue
        variants: dict[str, Edits] = {}
        masked = graph[source]
        inner = [r for r in masked.refs if tensor(graph, r) is not None]
        shape = masked.value.shape
        x = next((r for r in inner if graph.value(r).shape == shape), source)
        variants["mean over padding too"] = {
            call.index: Node(lambda v, d=dim, k=keepdim: v.mean(d, keepdim=k), (x,))
        }
        variants["sum over padding too"] = {
            total.index: Node(lambda v, d=dim, k=keepdim: v.sum(d, keepdim=k), (x,))
        }
        variants["divided by the number of all tokens"] = {
            call.index: Node(lambda v, d=dim, k=keepdim: v.mean(d, keepdim=k), (source,))
        }
        yield Site(call.owner, variants)
    for call in graph.named("mul", "masked_fill", "where"):
        y = tensor(graph, call.ref)
        if y is None:
            continue
        for ref in call.refs:
            value = graph.value(ref)
            if value.shape == y.shape and value.is_floating_point():
                others = [r for r in call.refs if r != ref]
                if others and all(_is_mask(graph.value(o)) for o in others):
                    edits: Edits = {call.index: Node(lambda x: x, (ref,))}
                    yield Site(call.owner, {"padding not hidden": edits})
    for call in graph.named("cross_entropy", "nll_loss"):
        ignored = call.kwargs.get("ignore_index", -100)
        target = graph.value(call.kwargs["target"])
        if not bool((target == ignored).any()):
            continue
        node = graph.changed(
            call,
            lambda target, call=call, i=ignored, **k: call.function(
                target=target.where(target != i, torch.zeros_like(target)) if i < 0 else target,
                **{**k, "ignore_index": -100},
            ),
        )
        yield Site(call.owner, {"padding counted": {call.index: node}})


def _is_mask(value: Tensor) -> bool:
    return bool(((value == 0) | (value == 1)).all())


def label_shift(graph: Graph) -> Iterable[Site]:
    """Labels that are not shifted against the inputs, or twice."""
    for call in graph.named("cross_entropy", "nll_loss", "gather"):
        target = call.kwargs.get("target", call.kwargs.get("index"))
        if not isinstance(target, Ref):
            refs = [r for r in call.refs if not graph.value(r).is_floating_point()]
            target = refs[0] if refs else None
        if not isinstance(target, Ref):
            continue
        source = graph[behind_layout(graph, target)]
        slices = [
            c
            for c in graph.live
            if c.name == "getitem" and len(c.refs) == 1 and descends_to(graph, target, c)
        ]
        variants: dict[str, Edits] = {}
        for cut in slices:
            data = cut.data
            if data is None:
                continue
            x, y = graph.value(data), cut.value
            axes = [d for d in range(x.dim()) if x.dim() == y.dim() and x.size(d) != y.size(d)]
            if len(axes) != 1:
                continue
            axis, n = axes[0], y.size(axes[0])
            for start in range(x.size(axis) - n + 1):
                if not torch.equal(x.narrow(axis, start, n), y):
                    variants[f"labels from {start} on"] = {
                        cut.index: Node(lambda v, a=axis, s=start, n=n: v.narrow(a, s, n), (data,))
                    }
            for k in (1, -1):
                variants[f"labels {k:+d} further"] = {
                    cut.index: graph.then(cut, lambda v, a=axis, k=k: v.roll(-k, a))
                }
        value = graph.value(source.ref) if not isinstance(source.value, tuple) else None
        if value is not None and value.dim() >= 1 and source.name in ("input",):
            for k in (1, -1):
                variants[f"labels {k:+d}"] = {
                    source.index: graph.then(source, lambda v, k=k: v.roll(-k, -1))
                }
                fresh = graph.fresh()
                ignored = call.kwargs.get("ignore_index", -100)
                variants[f"labels {k:+d}, the end ignored"] = {
                    fresh: Node(lambda v, k=k, i=ignored: _rolled_off(v, k, i), (source.ref,)),
                    **{
                        user.index: graph.rewired(user, source.ref, Ref(fresh))
                        for user in graph.users_of(source)
                    },
                }
        elif value is not None and value.dim() >= 1:
            for k in (1, -1):
                rolled = graph.item_then(target, lambda v, k=k: v.roll(-k, -1))
                variants[f"labels {k:+d}"] = rolled
        yield Site(call.owner, variants)
    for call in graph.named("setitem"):
        # shift_right: y[:, 1:] = x[:, :-1]
        refs = call.refs
        if len(refs) == 2 and not graph.value(refs[1]).is_floating_point():
            source = graph[behind_layout(graph, refs[1])]
            if source.name == "input" and source.value.shape == call.value.shape:
                node = Node(lambda x: x, (source.ref,))
                yield Site(call.owner, {"inputs not shifted": {call.index: node}})


def _rolled_off(v: Tensor, k: int, ignored: int) -> Tensor:
    result = v.roll(-k, -1).clone()
    result[..., (-k if k > 0 else 0) : (None if k > 0 else -k)] = ignored
    return result


def descends_to(graph: Graph, ref: Ref, call: Call) -> bool:
    return ref.call == call.index or call.ref in ancestors(graph, graph[ref], 6)


def router(graph: Graph) -> Iterable[Site]:
    """The weights of the chosen experts normalised, or not, or over all."""
    for call in graph.named("topk"):
        source = call.kwargs["input"]
        origin = graph[behind_layout(graph, source)]
        weights = Ref(call.index, 0)
        users = [u for u in graph.users_of(call) if weights in u.refs]
        summed = [u for u in users if u.name == "sum"]
        for user in users:
            if user.name == "div" and user.refs[0] == weights:
                node = Node(lambda w: w, (weights,))
                yield Site(user.owner, {"chosen weights not normalised": {user.index: node}})
            if is_softmax(graph, user) and softmax_input(graph, user) == weights:
                index = Ref(call.index, 1)
                yield Site(
                    user.owner,
                    {
                        "softmax over all experts": {
                            user.index: Node(
                                lambda x, i: torch.softmax(x, -1).gather(-1, i), (source, index)
                            )
                        },
                        "softmax over all experts, then over the chosen": {
                            user.index: Node(
                                lambda x, i: torch.softmax(torch.softmax(x, -1).gather(-1, i), -1),
                                (source, index),
                            )
                        },
                        "chosen logits not normalised": {user.index: Node(lambda w: w, (weights,))},
                        "sigmoid for softmax": {user.index: Node(torch.sigmoid, (weights,))},
                    },
                )
        if not summed:
            node = graph.then(call, lambda v: (v[0] / v[0].sum(-1, keepdim=True), v[1]))
            yield Site(call.owner, {"chosen weights normalised": {call.index: node}})
        if is_softmax(graph, origin):
            logits = softmax_input(graph, origin)
            if logits is not None:
                node = Node(
                    lambda p, x, k=call["k"]: (
                        torch.softmax(x.gather(-1, p.topk(k, -1).indices), -1),
                        p.topk(k, -1).indices,
                    ),
                    (source, logits),
                )
                yield Site(call.owner, {"softmax over the chosen": {call.index: node}})
                twice = graph.then(call, lambda v: (torch.softmax(v[0], -1), v[1]))
                yield Site(call.owner, {"softmax over the chosen besides": {call.index: twice}})
