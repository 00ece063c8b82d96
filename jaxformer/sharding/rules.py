"""Where each parameter lives: a table from parameter path to PartitionSpec.

Kernels into a layer's inner width (heads, feed-forward) are split by `tensor` on their output axis,
kernels out of it on their input axis, so that a block needs one sum over `tensor` for each of its
sub-layers (Shoeybi et al. 2019, section 3). The other axis is split by `fsdp` (Rajbhandari et al.
2020, stage 3). Token embeddings are split by rows only: columns split by `fsdp` make the compiler
gather whole activations. The position table is small and is everywhere. An axis that the mesh does
not divide stays whole; a vocabulary may be padded to a multiple with `--model.vocab-size`.
"""

import math
import re

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import PyTree

from jaxformer.models.functional import leaf_path

RULES: tuple[tuple[str, P], ...] = (
    (r"(source_|target_)?embed/embedding", P(("tensor", "fsdp"), None)),
    (r"(self_|cross_)?attention/(query|key|value)/kernel", P("fsdp", "tensor")),
    (r"(self_|cross_)?attention/(query|key|value)/bias", P("tensor")),
    (r"(self_|cross_)?attention/out/kernel", P("tensor", "fsdp")),
    (r"mlp/up/kernel", P("fsdp", "tensor")),
    (r"mlp/up/bias", P("tensor")),
    (r"mlp/down/kernel", P("tensor", "fsdp")),
    (r"output/kernel", P("fsdp", "tensor")),
    (r"head/dense/kernel", P("fsdp", "tensor")),
    (r"head/dense/bias", P("tensor")),
)
"""The end of a path, and how its axes are split; leaves without a rule are on every device."""


def spec_for(path: str, shape: tuple[int, ...], mesh: Mesh) -> P:
    """The PartitionSpec of one leaf.

    Optimizer moments end in the path of their parameter, so the same rule places them beside it.
    """
    for pattern, spec in RULES:
        if re.search(rf"(^|/){pattern}$", path) and len(spec) == len(shape):
            return P(
                *(
                    axes if size % _ways(axes, mesh) == 0 else None
                    for axes, size in zip(spec, shape, strict=True)
                )
            )
    return P()


def _ways(axes: str | tuple[str, ...] | None, mesh: Mesh) -> int:
    """Into how many parts these mesh axes split."""
    names = (axes,) if isinstance(axes, str) else axes or ()
    return math.prod(mesh.shape[name] for name in names)


def state_shardings(abstract_state: PyTree, mesh: Mesh) -> PyTree:
    """A NamedSharding for every leaf of parameters or of a whole train state."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(mesh, spec_for(leaf_path(path), leaf.shape, mesh)),
        abstract_state,
    )
