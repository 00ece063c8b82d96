"""Parameters of scanned layers: which leaves are stacked, and a tree in the other form.

A list of blocks has the leaves `blocks/0/...` to `blocks/N-1/...`, of which `scan_layers` makes one
leaf `blocks/stacked/...` with a leading layer axis. These functions take any tree with the paths of
a model: parameters, gradients, moments or a whole train state, of arrays, of numpy or JAX, or their
shapes. A tree without stacks, and one that has the form already, stays as it is.
"""

import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import PyTree

from jaxformer.layers.stacks import StackedBlocks
from jaxformer.models.functional import flat_params, merge

STACKED = "stacked"
"""The attribute of `jaxformer.layers.stacks.StackedBlocks` that holds the parameters."""


def is_stacked(path: str) -> bool:
    """Whether the first axis of the leaf at this path is that of the layers."""
    return re.search(rf"\b{STACKED}\b", path) is not None


def stack_layers(tree: PyTree) -> PyTree:
    """The tree with one leaf (N, ...) for the leaves of N layers."""

    def is_list(node: Any) -> bool:
        return isinstance(node, dict) and 0 in node

    def stack(node: Any) -> Any:
        if not is_list(node):
            return node
        return {STACKED: jax.tree.map(_stack, *(node[i] for i in range(len(node))))}

    return jax.tree.map(stack, tree, is_leaf=is_list)


def unstack_layers(tree: PyTree) -> PyTree:
    """The tree with a leaf for each of the N layers: the inverse of `stack_layers`."""

    def is_stack(node: Any) -> bool:
        return isinstance(node, dict) and STACKED in node

    def unstack(node: Any) -> Any:
        if not is_stack(node):
            return node
        depth = jax.tree.leaves(node)[0].shape[0]
        return {i: jax.tree.map(functools.partial(_layer, i), node[STACKED]) for i in range(depth)}

    return jax.tree.map(unstack, tree, is_leaf=is_stack)


def in_form_of(like: PyTree, tree: PyTree) -> PyTree:
    """The tree with layers that are stacked if and only if those of `like` are."""
    return stack_layers(tree) if any(map(is_stacked, flat_params(like))) else unstack_layers(tree)


def keep_rows_sharded(graphdef: nnx.GraphDef, params: PyTree, rows: NamedSharding) -> nnx.GraphDef:
    """The graph definition whose scanned layers divide activations as `rows` divides a batch.

    Inside a loop the compiler would otherwise divide activations as `fsdp` divides the parameters,
    by their width: each device would hold, and sum with the others, those of the whole batch.
    """
    model = merge(graphdef, params)
    for _, module in nnx.iter_modules(model):
        if isinstance(module, StackedBlocks):
            module.rows = rows
    return nnx.graphdef(model)


def _stack(*layers: Any) -> Any:
    first = layers[0]
    if isinstance(first, jax.ShapeDtypeStruct):
        return _shape((len(layers), *first.shape), first, lambda spec: P(None, *spec))
    return np.stack(layers) if isinstance(first, np.ndarray) else jnp.stack(layers)


def _layer(index: int, stacked: Any) -> Any:
    if isinstance(stacked, jax.ShapeDtypeStruct):
        return _shape(stacked.shape[1:], stacked, lambda spec: P(*spec[1:]))
    return stacked[index]


def _shape(
    shape: tuple[int, ...], like: jax.ShapeDtypeStruct, spec_of: Callable[[P], P]
) -> jax.ShapeDtypeStruct:
    """A shape of the type of `like`, and of its sharding over a mesh with another PartitionSpec."""
    sharding = like.sharding
    if isinstance(sharding, NamedSharding):
        sharding = NamedSharding(sharding.mesh, spec_of(sharding.spec))
    return jax.ShapeDtypeStruct(shape, like.dtype, sharding=sharding)
