"""The mesh of devices a run lives on; one device is the mesh of one.

Axes: `data` holds copies of the model, `fsdp` shares the parameters of a copy, `tensor` shares each
layer's heads and feed-forward width. A batch is split by rows over `data` and `fsdp` together.

The compiler divides each step by these axes (`jax.jit` with shardings). Data parallelism written
out by hand is jaxformer/training/data_parallel.py, by `jax.shard_map`. There is no `jax.pmap`: JAX
keeps it in maintenance since 0.8, and runs it through `jax.shard_map` itself.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from jaxformer.config import MeshConfig
from jaxformer.errors import UserError

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over the devices, by default all of all processes; -1 on one axis takes all left.

    The devices of a process stand side by side, so that `tensor`, then `fsdp`, stay within it where
    their sizes let them: they exchange more than `data` does, over the faster wires.

    Raises:
        UserError: when the axes do not multiply to the number of devices.
    """
    if devices is None:
        devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    sizes = [config.data, config.fsdp, config.tensor]
    flags = " ".join(f"--mesh.{axis} {size}" for axis, size in zip(AXES, sizes, strict=True))
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise UserError(f"{flags} is no mesh: give each axis 1 or more, at most one of them -1")
    known = math.prod(size for size in sizes if size != -1)
    if -1 in sizes:
        sizes[sizes.index(-1)] = len(devices) // known
    if math.prod(sizes) != len(devices):
        raise UserError(
            f"{flags} does not fill the {len(devices)} devices: choose axes that multiply to "
            f"{len(devices)}"
        )
    return Mesh(np.asarray(devices).reshape(sizes), AXES)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows of a batch over data and fsdp; each row whole on its devices."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def shard_batch(tree: PyTree, sharding: NamedSharding) -> PyTree[jax.Array]:
    """Put arrays that every process has in full where they belong; each places its own parts."""
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)

    def place_own_parts(leaf: Any) -> jax.Array:
        return jax.make_array_from_callback(leaf.shape, sharding, np.asarray(leaf).__getitem__)

    return jax.tree.map(place_own_parts, tree)


def num_batch_shards(mesh: Mesh) -> int:
    """Into how many parts the rows of a batch are split."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def check_batch_size(batch_size: int, accumulation: int, mesh: Mesh) -> None:
    """Refuse a batch whose slices do not split evenly over data and fsdp."""
    ways = num_batch_shards(mesh)
    if batch_size % (ways * accumulation):
        data, fsdp = (mesh.shape[axis] for axis in BATCH_AXES)
        slices = f" in {accumulation} slices" if accumulation > 1 else ""
        raise UserError(
            f"batch-size {batch_size}{slices} does not split over {ways} devices, "
            f"mesh.data {data} x mesh.fsdp {fsdp}: choose --batch-size as a multiple of "
            f"{ways * accumulation}, or put fewer devices on data and fsdp and more on "
            "--mesh.tensor"
        )


def check_heads(num_heads: int, mesh: Mesh) -> None:
    """Refuse a mesh whose tensor axis would cut through heads.

    The columns of queries, keys and values would split, (B, L, H, K) would not: the compiler would
    then move activations between devices in every layer.
    """
    if num_heads % mesh.shape["tensor"]:
        raise UserError(
            f"mesh.tensor {mesh.shape['tensor']} does not divide model.num-heads {num_heads}: "
            "choose --mesh.tensor as a divisor of it, or another --model.num-heads"
        )
