"""A graph attention network on a dense adjacency matrix; a port as a callable pytree."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.porting.case import Case, Fault, draw

NODES, FEATURES, HEADS, HIDDEN, CLASSES = 17, 9, 3, 5, 4


class GATConv(nn.Module):
    """Node i gathers from the j with adjacency[i, j]."""

    def __init__(self, features, size, mean=False):
        super().__init__()
        self.mean = mean
        self.lin = nn.Linear(features, HEADS * size, bias=False)
        self.att_src = nn.Parameter(torch.zeros(HEADS, size))
        self.att_dst = nn.Parameter(torch.zeros(HEADS, size))
        self.bias = nn.Parameter(torch.zeros(size if mean else HEADS * size))
        self.leaky = nn.LeakyReLU(0.2)

    def forward(self, x, adjacency):
        h = self.lin(x).view(len(x), HEADS, -1)
        source, target = (h * self.att_src).sum(-1), (h * self.att_dst).sum(-1)
        scores = self.leaky(target[:, None] + source[None])
        scores = scores.masked_fill(~adjacency[..., None], float("-inf"))
        out = torch.einsum("ijh,jhd->ihd", scores.softmax(dim=1), h)
        return (out.mean(1) if self.mean else out.flatten(1)) + self.bias


class GAT(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = GATConv(FEATURES, HIDDEN)
        self.conv2 = GATConv(HEADS * HIDDEN, HIDDEN)
        self.conv3 = GATConv(HEADS * HIDDEN, CLASSES, mean=True)
        self.skip = nn.Linear(HEADS * HIDDEN, HEADS * HIDDEN)

    def forward(self, x, adjacency):
        x = F.elu(self.conv1(x, adjacency))
        x = F.elu(self.conv2(x, adjacency) + self.skip(x))
        return F.log_softmax(self.conv3(x, adjacency), dim=-1)


def torch_model() -> nn.Module:
    return draw(GAT())


def inputs() -> Any:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((NODES, FEATURES)).astype(np.float32)
    return x, (rng.random((NODES, NODES)) < 0.3) | np.eye(NODES, dtype=bool)


@jax.tree_util.register_pytree_node_class
class Layer:
    """One kernel a head, (heads, in, out)."""

    def __init__(self, w, left, right, bias, how=()):
        self.w, self.left, self.right, self.bias, self.how = w, left, right, bias, how

    def tree_flatten(self):
        return (self.w, self.left, self.right, self.bias), self.how

    @classmethod
    def tree_unflatten(cls, how, leaves):
        return cls(*leaves, how)

    def __call__(self, x, edges):
        how = dict(self.how)

        def one_head(w, left, right):
            h = x @ w
            e = jax.nn.leaky_relu((h @ right)[:, None] + h @ left, how.get("slope", 0.2))
            a = jax.nn.softmax(jnp.where(edges, e, how.get("fill", -1e9)), axis=how.get("axis", 1))
            return a @ h

        y = jax.vmap(one_head)(self.w, self.left, self.right)
        if y.shape[-1] == len(self.bias):
            return y.mean(0) + self.bias
        y = y.transpose(1, 2, 0) if how.get("interleave") else y.swapaxes(0, 1)
        return y.reshape(len(x), -1) + self.bias


@jax.tree_util.register_pytree_node_class
class GraphNet:
    def __init__(self, layers, skip, act=jax.nn.elu):
        self.layers, self.skip, self.act = layers, skip, act

    def tree_flatten(self):
        return (self.layers, self.skip), self.act

    @classmethod
    def tree_unflatten(cls, act, leaves):
        return cls(*leaves, act)

    def __call__(self, x, edges):
        first, second, third = self.layers
        x = self.act(first(x, edges))
        weight, bias = self.skip
        y = second(x, edges) + x @ weight
        x = self.act(y if bias is None else y + bias)
        return jax.nn.log_softmax(third(x, edges), axis=-1)


def port(w: Any, bias: bool = True, act: Any = jax.nn.elu, square: bool = False, **how: Any) -> Any:
    w = {name: jnp.asarray(x) for name, x in w.items()}

    def layer(name: str) -> Layer:
        kernel = w[f"{name}.lin.weight"]
        kernel = kernel.reshape(HEADS, -1, kernel.shape[1]).swapaxes(1, 2)
        parts = (w[f"{name}.{part}"] for part in ("att_src", "att_dst", "bias"))
        return Layer(kernel, *parts, tuple(how.items()))

    skip = w["skip.weight"] if square else w["skip.weight"].T
    layers = [layer(f"conv{i}") for i in (1, 2, 3)]
    return GraphNet(layers, (skip, w["skip.bias"] if bias else None), act)


def case(name: str, *faults: Fault, **how: Any) -> Case:
    return Case(name, "pytree", torch_model, partial(port, **how), inputs, faults)


CASES = [
    case("a kernel for each head"),
    case(
        "the default slope of leaky relu",
        Fault("conv?.leaky", ("activation-slope",), ("conv?",)),
        slope=0.01,
    ),
    case("softmax over the targets", Fault("conv?", ("softmax-axis",)), axis=0),
    case("heads innermost", Fault("conv?", ("head-order",)), interleave=True),
    case("no edges filled with zero", Fault("conv?", ("mask-fill",)), fill=0.0),
    case("no bias beside the second layer", Fault("skip", ("bias-missing",)), bias=False),
    case(
        "relu, and the skip transposed",
        Fault("", ("activation",)),
        Fault("skip", ("transposed-kernel",), in_weights=True),
        act=jax.nn.relu,
        square=True,
    ),
]
