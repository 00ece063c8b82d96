"""Sharding rules: a table from parameter path to PartitionSpec.

Kernels into a layer's inner width (heads, feed-forward) are sharded over `tensor` on their output
axis, kernels out of it on their input axis, so that each sub-layer of a block needs one all-reduce
over `tensor` (Shoeybi et al. 2019, section 3). The other axis is sharded over `fsdp` (Rajbhandari
et al. 2020, stage 3). Token embeddings are sharded by rows only: columns sharded over `fsdp` make
the compiler gather whole activations. The position table is small and is replicated. An axis whose
size the mesh does not divide stays whole; `--model.vocab-size` pads a vocabulary to a multiple.
"""

import math
import re

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import PyTree

from jaxformer.models.functional import leaf_path
from jaxformer.models.stacked import is_stacked

RULES: tuple[tuple[str, P], ...] = (
    (r"(source_|target_)?embed/embedding", P(("tensor", "fsdp"), None)),
    (r"(self_|cross_)?attention/(query|key|value)/kernel", P("fsdp", "tensor")),
    (r"(self_|cross_)?attention/(query|key|value)/bias", P("tensor")),
    (r"(self_|cross_)?attention/out/kernel", P("tensor", "fsdp")),
    (r"mlp/(up|gate)/kernel", P("fsdp", "tensor")),
    (r"mlp/(up|gate)/bias", P("tensor")),
    (r"mlp/down/kernel", P("tensor", "fsdp")),
    (r"output/kernel", P("fsdp", "tensor")),
    (r"head/dense/kernel", P("fsdp", "tensor")),
    (r"head/dense/bias", P("tensor")),
)
"""(end of the path, PartitionSpec); leaves without a rule are replicated."""


def spec_for(path: str, shape: tuple[int, ...], mesh: Mesh) -> P:
    """The PartitionSpec of one leaf.

    The path of an optimizer moment ends with the path of its parameter, so the same rule applies.
    The axis of stacked layers stays whole.
    """
    layers = (None,) if is_stacked(path) else ()
    for pattern, rule in RULES:
        spec = (*layers, *rule)
        if re.search(rf"(^|/){pattern}$", path) and len(spec) == len(shape):
            return P(
                *(
                    axes if size % _num_shards(axes, mesh) == 0 else None
                    for axes, size in zip(spec, shape, strict=True)
                )
            )
    return P()


def _num_shards(axes: str | tuple[str, ...] | None, mesh: Mesh) -> int:
    """The number of shards that these mesh axes split an array axis into."""
    names = (axes,) if isinstance(axes, str) else axes or ()
    return math.prod(mesh.shape[name] for name in names)


def state_shardings(abstract_state: PyTree, mesh: Mesh) -> PyTree:
    """A NamedSharding for every leaf, of parameters or of a whole train state."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(mesh, spec_for(leaf_path(path), leaf.shape, mesh)),
        abstract_state,
    )
