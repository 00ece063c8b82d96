"""A plan compared with devices: two steps run on them, and their memory is read.

The program is compiled as in a training run, without the options of the plan; its own memory
analysis is read, the shards of the allocated state are counted, and devices that record their peak
memory (GPUs, not CPUs) report it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxformer.config import RunConfig
from jaxformer.planning.plan import analysed_total
from jaxformer.planning.shapes import abstract_spec, largest_batch
from jaxformer.runtime.memory import peak_bytes
from jaxformer.sharding.mesh import make_mesh
from jaxformer.tasks.program import build


class Measured(NamedTuple):
    """Bytes on one device, the one with the most."""

    state: int
    """Shards of parameters, optimizer and loss statistics as allocated."""
    program: int
    """By the program's `memory_analysis`."""
    peak: int | None
    """The most that this process ever held on a device, if devices record it; on a GPU it includes
    what XLA tried out while it compiled."""


def run_two_steps(config: RunConfig, devices: Sequence[jax.Device]) -> Measured:
    """Allocate a run's state on devices and take two steps with a batch of zeros.

    Raises:
        UserError: as `make_plan` does.
    """
    mesh = make_mesh(config.mesh, devices)
    spec = abstract_spec(config)
    program = build(spec, mesh)
    shapes = largest_batch(spec.config, mesh).arrays
    batch = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype, device=x.sharding), shapes)
    state = program.fresh_state()
    step = program.train_step.lower(state, batch).compile()
    for _ in range(2):
        state, metrics = step(state, batch)
    jax.block_until_ready((state, metrics))
    held = dict.fromkeys(devices, 0)
    for leaf in jax.tree.leaves(state):
        for shard in leaf.addressable_shards:
            held[shard.device] += shard.data.nbytes
    return Measured(max(held.values()), analysed_total(step.memory_analysis()), peak_bytes(devices))
