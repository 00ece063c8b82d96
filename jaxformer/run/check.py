"""A plan held against devices: two steps are run on them, and what they held is read.

Devices that count their memory (GPUs) tell the most they ever held; others (CPUs) do not, and there
the program that was run tells what it holds. Either way the state that was really allocated is
counted, shard by shard.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxformer.run.abstract import abstract_method, largest_batch
from jaxformer.run.config_io import RunConfig
from jaxformer.run.plan import CPU_OPTIONS, analysed_total
from jaxformer.run.program import build
from jaxformer.run.steplog import peak_bytes
from jaxformer.sharding.mesh import make_mesh


class Used(NamedTuple):
    """Bytes on one device, the one with the most."""

    state: int
    """Shards of parameters and optimizer as allocated."""
    program: int
    """What the program that was run holds, by its `memory_analysis`."""
    peak: int | None
    """The most the device held, if it counts."""


def run_two_steps(config: RunConfig, devices: Sequence[jax.Device]) -> Used:
    """Allocate a run's state on devices and do two steps with a batch of zeros.

    Raises:
        UserError: as `make_plan` does.
    """
    mesh = make_mesh(config.mesh, devices)
    method = abstract_method(config)
    program = build(method, mesh)
    shapes = largest_batch(method.config, mesh).arrays
    batch = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype, device=x.sharding), shapes)
    state = program.fresh_state()
    on_cpu = devices[0].platform == "cpu"
    step = program.train_step.lower(state, batch).compile(CPU_OPTIONS if on_cpu else None)
    for _ in range(2):
        state, metrics = step(state, batch)
    jax.block_until_ready((state, metrics))
    held = dict.fromkeys(devices, 0)
    for leaf in jax.tree.leaves(state):
        for shard in leaf.addressable_shards:
            held[shard.device] += shard.data.nbytes
    return Used(max(held.values()), analysed_total(step.memory_analysis()), peak_bytes(devices))
