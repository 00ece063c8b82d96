"""Where each parameter lives: a table from parameter path to PartitionSpec.

Kernels into a layer's inner width (heads, feed-forward) are split by `tensor` on their output axis,
kernels out of it on their input axis, so that a block needs one sum over `tensor` for each of its
sub-layers (Shoeybi et al. 2019, section 3). The other axis is split by `fsdp` (Rajbhandari et al.
2020, stage 3). An axis that a mesh axis does not divide stays whole.
"""

import re

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import PyTree

from jaxformer.models.pure import leaf_path

RULES: tuple[tuple[str, P], ...] = (
    (r"embed/embedding", P("tensor", "fsdp")),
    (r"positions/embedding", P(None, "fsdp")),
    (r"attention/(query|key|value)/kernel", P("fsdp", "tensor")),
    (r"attention/(query|key|value)/bias", P("tensor")),
    (r"attention/out/kernel", P("tensor", "fsdp")),
    (r"mlp/up/kernel", P("fsdp", "tensor")),
    (r"mlp/up/bias", P("tensor")),
    (r"mlp/down/kernel", P("tensor", "fsdp")),
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
                    axis if axis is not None and size % mesh.shape[axis] == 0 else None
                    for axis, size in zip(spec, shape, strict=True)
                )
            )
    return P()


def state_shardings(abstract_state: PyTree, mesh: Mesh) -> PyTree:
    """A NamedSharding for every leaf of parameters or of a whole train state."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(mesh, spec_for(leaf_path(path), leaf.shape, mesh)),
        abstract_state,
    )
