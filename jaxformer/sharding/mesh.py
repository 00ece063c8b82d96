"""The device mesh of a run; a single device is a mesh of size one.

`data` replicates the model, `fsdp` shards the parameters of one replica, `tensor` shards the heads
and the feed-forward width of each layer. The rows of a batch are sharded over `data` and `fsdp`.

The compiler partitions each step along these axes (`jax.jit` with shardings).
jaxformer/training/data_parallel.py writes data parallelism out by hand with `jax.shard_map`.
`jax.pmap` is not used: it has been in maintenance since JAX 0.8, which runs it as `jax.shard_map`.
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
    """A mesh over `devices`, by default those of all processes; -1 on one axis takes the rest.

    The devices of a process are adjacent, so `tensor`, then `fsdp`, stay within one process where
    their sizes allow: they communicate more than `data` and need the faster links.

    Raises:
        UserError: when the axes do not multiply to the number of devices.
    """
    if devices is None:
        devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    sizes = [config.data, config.fsdp, config.tensor]
    flags = " ".join(f"--mesh.{axis} {size}" for axis, size in zip(AXES, sizes, strict=True))
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise UserError(f"{flags} is not a mesh: set each axis to 1 or more, or one of them to -1")
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
    """The sharding of a batch: rows over `data` and `fsdp`, each row whole."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def shard_batch(tree: PyTree, sharding: NamedSharding) -> PyTree[jax.Array]:
    """Shard arrays that every process holds in full; each process copies its own shards."""
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)

    def own_shards(leaf: Any) -> jax.Array:
        return jax.make_array_from_callback(leaf.shape, sharding, np.asarray(leaf).__getitem__)

    return jax.tree.map(own_shards, tree)


def num_batch_shards(mesh: Mesh) -> int:
    """The number of shards that the rows of a batch are split into."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def check_batch_size(batch_size: int, accumulation: int, mesh: Mesh) -> None:
    """Refuse a batch whose accumulation slices do not split evenly over `data` and `fsdp`."""
    shards = num_batch_shards(mesh)
    if batch_size % (shards * accumulation):
        data, fsdp = (mesh.shape[axis] for axis in BATCH_AXES)
        slices = f" in {accumulation} slices" if accumulation > 1 else ""
        raise UserError(
            f"batch-size {batch_size}{slices} does not split over {shards} devices, "
            f"mesh.data {data} x mesh.fsdp {fsdp}: choose --batch-size as a multiple of "
            f"{shards * accumulation}, or put fewer devices on data and fsdp and more on "
            "--mesh.tensor"
        )


def check_heads(num_heads: int, mesh: Mesh, flag: str = "model.num-heads") -> None:
    """Refuse a mesh whose `tensor` axis does not divide the number of heads, by its flag's name.

    The columns of the query, key and value kernels would still split, but (B, L, H, K) would not:
    the compiler would then move activations between devices in every layer.
    """
    if num_heads % mesh.shape["tensor"]:
        raise UserError(
            f"mesh.tensor {mesh.shape['tensor']} does not divide {flag} {num_heads}: "
            f"choose --mesh.tensor as a divisor of it, or another --{flag}"
        )
