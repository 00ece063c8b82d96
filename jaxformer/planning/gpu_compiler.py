"""A train step compiled by XLA's GPU compiler, for a GPU that need not be there.

jax's CUDA plugin compiles for a described device: no GPU, no driver and no allocation is needed.
Memory, fusion, layouts, library calls and what is sent are those of the real program. Only choices
by trial differ, as there is nothing to try on: the tiles of matrix products, and whether cuBLAS or
a generated kernel computes them.
"""

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import topologies

from jaxformer.config import RunConfig
from jaxformer.planning.hardware import GPU
from jaxformer.planning.hlo import collectives, totals
from jaxformer.planning.kernels import read_kernels
from jaxformer.planning.plan import GPUProgram, Plan, split_memory
from jaxformer.planning.shapes import abstract_spec, largest_batch
from jaxformer.sharding.mesh import make_mesh
from jaxformer.tasks.program import build

TARGET = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_core: {shared}
  shared_memory_per_block_optin: {optin} registers_per_core_limit: 65536
  registers_per_block_limit: 65536 core_count: {cores} fpus_per_core: {lanes}
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth} l2_cache_size: {l2} clock_rate_ghz: {clock}
  device_memory_size: {memory} cuda_compute_capability {{ major: {major} minor: {minor} }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
runtime_version {{ major: 12 minor: 9 }}
device_description_str: "{name}"
"""
"""XLA's description of a GPU (stream_executor.GpuTargetConfigProto), with cuDNN 9.10 and CUDA 12.9,
below which jax's plugin does not start."""


INSTALL = f'pip install "jax[cuda12]=={jax.__version__}"'
"""What makes the compiler available."""


def described_devices(gpu: GPU, number: int) -> Sequence[jax.Device] | None:
    """Devices to compile for and never to run on; None without the CUDA plugin or the figures."""
    if gpu.chip is None:
        return None
    chip = gpu.chip
    major, minor = chip.capability.split(".")
    target = TARGET.format(
        shared=chip.shared_memory,
        optin=chip.shared_memory - 1024,
        cores=chip.cores,
        lanes=chip.lanes,
        bandwidth=round(gpu.bandwidth),
        l2=chip.l2,
        clock=chip.clock,
        memory=round(gpu.memory),
        major=major,
        minor=minor,
        name=chip.name,
    )
    try:
        topology: Any = topologies.get_topology_desc(
            platform="cuda", target_config=target, topology=f"1x1x{number}"
        )
    except NotImplementedError:  # no plugin is installed
        return None
    return topology.devices


def by_gpu_compiler(plan: Plan, config: RunConfig, devices: Sequence[jax.Device]) -> Plan:
    """The plan with memory, collectives and kernels of the program for these devices.

    What that compiler does not count, FLOPs and memory traffic, stays as it was planned.

    Raises:
        UserError: as `make_plan` does.
    """
    mesh = make_mesh(config.mesh, devices)
    spec = abstract_spec(config)
    batch = largest_batch(spec.config, mesh)
    program = build(spec, mesh)
    begun = time.perf_counter()
    with jax.default_device(devices[0]):  # `auto` attention is chosen for it
        compiled = program.train_step.lower(program.state, batch.arrays).compile()
    seconds, text = time.perf_counter() - begun, compiled.as_text()
    analysis = compiled.memory_analysis()
    return dataclasses.replace(
        plan,
        memory=split_memory(program, batch.arrays, analysis),
        collectives=totals(collectives(text)),
        gpu_program=GPUProgram(devices[0].device_kind, seconds, read_kernels(text)),
    )
