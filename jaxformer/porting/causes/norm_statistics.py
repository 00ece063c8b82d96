"""Faults of the numbers that a norm divides by: groups, channels, batches."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from jaxformer.porting.causes.graph import Call, Edits, Graph, Node, Ref
from jaxformer.porting.causes.norms import affine, per_channel
from jaxformer.porting.causes.sites import (
    Site,
)


def statistics(graph: Graph) -> Iterable[Site]:
    """The mean not taken off, or taken off where it should stay; the unbiased variance."""
    for call in graph.named("layer_norm", "rms_norm"):
        shape = tuple(call.kwargs["normalized_shape"])
        dims = tuple(range(-len(shape), 0))
        eps = call["eps"]

        def norm(
            input: Tensor,
            weight: Tensor | None = None,
            bias: Tensor | None = None,
            *,
            centre: bool,
            correction: int,
            dims: tuple[int, ...] = dims,
            eps: float | None = eps,
            **_: object,
        ) -> Tensor:
            eps = torch.finfo(input.dtype).eps if eps is None else eps
            centred = input - input.mean(dims, keepdim=True) if centre else input
            n = centred[0].numel() if dims is None else 1
            for dim in dims:
                n *= input.size(dim)
            variance = (centred**2).sum(dims, keepdim=True) / (n // max(1, 1) - correction)
            return affine(centred * torch.rsqrt(variance + eps), weight, bias)

        variants: dict[str, Edits] = {}
        for what, centre, correction in (
            ("mean not taken off", False, 0),
            ("mean taken off", True, 0),
            ("unbiased variance", True, 1),
        ):
            if (call.name == "layer_norm") == (what == "mean taken off"):
                continue
            function = lambda centre=centre, correction=correction, norm=norm, **k: norm(  # noqa: E731
                centre=centre, correction=correction, **k
            )
            variants[what] = {call.index: graph.changed(call, function)}
        yield Site(call.owner, variants)
    for call in graph.named("var", "std"):
        biased = call.kwargs.get("unbiased", True) is False or call.kwargs.get("correction", 1) == 0
        kwargs = {k: v for k, v in call.kwargs.items() if k not in ("unbiased", "correction")}
        args = tuple(a for a in call.args if not isinstance(a, bool))
        node = Node(call.function, args, {**kwargs, "correction": int(biased)})
        what = "unbiased variance" if biased else "biased variance"
        yield Site(call.owner, {what: {call.index: node}})


def groups(graph: Graph) -> Iterable[Site]:
    """Other groups of channels, in norms and convolutions."""
    for call in graph.named("group_norm"):
        x = graph.value(call.kwargs["input"])
        C, G = x.size(1), call.kwargs["num_groups"]
        variants: dict[str, Edits] = {
            f"{n} groups": {call.index: graph.changed(call, num_groups=n)}
            for n in range(1, C + 1)
            if C % n == 0 and n != G
        }
        variants["channels strided over the groups"] = {
            call.index: graph.changed(call, _strided_groups)
        }
        yield Site(call.owner, variants)
    for call in graph.live:
        n = call["groups"]
        if call.name.startswith("conv") and isinstance(n, int) and n > 1:
            yield Site(call.owner, dict(_group_orders(graph, call, n)))


def _strided_groups(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    C = input.size(1)
    order = torch.arange(C).view(C // num_groups, num_groups).T.reshape(-1)
    normal = F.group_norm(input[:, order], num_groups, eps=eps)[:, torch.argsort(order)]
    return affine(normal, per_channel(weight, input), per_channel(bias, input))


def _strides(C: int, n: int) -> Tensor:
    return torch.arange(C).view(n, C // n).T.reshape(-1)


def _group_orders(graph: Graph, call: Call, n: int) -> Iterator[tuple[str, Edits]]:
    x, y = graph.value(call.kwargs["input"]), graph.value(call.ref)
    ins, outs = _strides(x.size(1), n), _strides(y.size(1), n)
    back_in, back_out = torch.argsort(ins), torch.argsort(outs)

    def node(order_in: Tensor | None, order_out: Tensor | None) -> Edits:
        def convolve(input: Tensor, **rest: object) -> Tensor:
            if order_in is not None:
                input = input[:, order_in]
            result: Tensor = call.function(input=input, **rest)
            return result if order_out is None else result[:, order_out]

        return {call.index: Node(convolve, (), call.kwargs)}

    for what, order_in, order_out in (
        ("input channels strided over the groups", ins, None),
        ("output channels strided over the groups", None, outs),
        ("channels strided over the groups", ins, outs),
        ("input channels strided over the groups", back_in, None),
        ("output channels strided over the groups", None, back_out),
        ("channels strided over the groups", back_in, back_out),
    ):
        yield (
            f"{what} ({'from' if order_in is back_in or order_out is back_out else 'to'})",
            node(order_in, order_out),
        )


def batch_statistics(graph: Graph) -> Iterable[Site]:
    """The statistics of the batch for the running ones, or the reverse."""
    for call in graph.named("batch_norm"):
        training = bool(call["training"])
        variants: dict[str, Edits] = {}
        if not training:
            batch = graph.changed(call, running_mean=None, running_var=None, training=True)
            variants["statistics of the batch"] = {call.index: batch}
            variants["unbiased statistics of the batch"] = {
                call.index: graph.changed(call, _unbiased_batch)
            }
            variants["statistics of each sample"] = {call.index: graph.changed(call, _per_sample)}
            mean, var = call["running_mean"], call["running_var"]
            zeros = lambda running_mean, running_var, call=call, **k: call.function(  # noqa: E731
                running_mean=torch.zeros_like(running_mean),
                running_var=torch.ones_like(running_var),
                **k,
            )
            variants["running statistics at their start"] = {call.index: graph.changed(call, zeros)}
            variants["deviation for variance"] = {
                call.index: graph.changed(
                    call,
                    lambda running_var, call=call, **k: call.function(
                        running_var=running_var**2, **k
                    ),
                )
            }
            variants["mean and variance exchanged"] = {
                call.index: graph.changed(call, running_mean=var, running_var=mean)
            }
        elif isinstance(call["running_mean"], Ref):
            variants["running statistics"] = {call.index: graph.changed(call, training=False)}
        yield Site(call.owner, variants)


def _unbiased_batch(
    input: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    **_: object,
) -> Tensor:
    dims = tuple(i for i in range(input.dim()) if i != 1)
    centred = input - input.mean(dims, keepdim=True)
    variance = (centred**2).sum(dims, keepdim=True) / (input.numel() / input.size(1) - 1)
    normal = centred * torch.rsqrt(variance + eps)
    return affine(normal, per_channel(weight, input), per_channel(bias, input))


def _per_sample(
    input: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    **_: object,
) -> Tensor:
    return F.instance_norm(input, weight=weight, bias=bias, eps=eps)
