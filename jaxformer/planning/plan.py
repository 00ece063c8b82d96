"""Memory and work of a run on each device, from its compiled train step and without running it.

The step is lowered for shapes instead of arrays and compiled for simulated CPU devices, as many as
the run will have, so that no parameter is allocated and no accelerator is needed. XLA's analyses of
the program (`memory_analysis`, `cost_analysis`, its text) are of one device:

    parameters, optimizer, batch   the program's arguments: the shards of the state and of the rows
    gradients                      one number per parameter, sharded as the parameter is
    activations                    the program's temporary memory but for the gradients: what the
                                   forward pass keeps for the backward pass, and working memory
    results                        outputs that do not take the place of an argument (the state
                                   does, being donated), and the code itself

The gradients are counted by formula: XLA gives one number for all that is temporary, and may reuse
the memory of activations for them.

The program is that of XLA's CPU compiler. Its GPU compiler fuses more, so that it keeps and moves
less, sends less (`jaxformer.planning.roofline` says by how much), and adds the workspace of its
libraries; a CPU computes bfloat16 by way of float32, so that activations count a third more.
`jaxformer.planning.gpu_compiler` compiles with the GPU compiler instead, where it is installed;
`jaxformer.planning.verify` compares with a device.
"""

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh
from jaxtyping import PyTree

from jaxformer.config import Remat, RunConfig
from jaxformer.models.functional import num_parameters
from jaxformer.planning.hlo import Total, collectives, totals
from jaxformer.planning.kernels import Kernels
from jaxformer.planning.shapes import abstract_spec, largest_batch
from jaxformer.sharding.mesh import make_mesh
from jaxformer.tasks.program import Program, build, require_x64
from jaxformer.tasks.task import TrainSpec

BY_MEMORY = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}
AS_ON_GPU = {"xla_disable_hlo_passes": "cse_barrier_expander,while-loop-invariant-code-motion"}


def cpu_options(remat: Remat) -> Mapping[str, str]:
    """Options with which XLA's CPU compiler holds about as much as its GPU compiler.

    The barriers that hold rematerialisation back until a block's gradients are due stay in; else it
    saves little. The matrices that `fsdp` gathers are gathered in each slice: the CPU's compiler
    would gather them all before the loop, and hold the whole model.

    XLA orders a GPU's program for memory, and a CPU's if an option asks for it. With
    rematerialisation none does: that order would compute all blocks' weight gradients at the end,
    and hold until then what they are computed from.
    """
    return AS_ON_GPU | BY_MEMORY if remat == "none" else AS_ON_GPU


class Memory(NamedTuple):
    """Bytes on one device during a step."""

    parameters: int
    optimizer: int
    """Its moments, the counts of steps and the loss statistics."""
    batch: int
    gradients: int
    activations: int
    """And everything else that is temporary."""
    results: int

    @property
    def arguments(self) -> int:
        """What the step is given: the state and the batch."""
        return self.parameters + self.optimizer + self.batch

    @property
    def temporaries(self) -> int:
        """What only the step itself needs."""
        return self.gradients + self.activations

    @property
    def total(self) -> int:
        """All of it."""
        return sum(self)


@dataclasses.dataclass(frozen=True)
class GPUProgram:
    """What XLA's GPU compiler made of the step; `jaxformer.planning.gpu_compiler` makes it."""

    device_kind: str
    """The GPU that it was compiled for."""
    seconds: float
    """Spent on lowering and compiling."""
    kernels: Kernels


@dataclasses.dataclass(frozen=True)
class Plan:
    """Memory and work of a step on one device."""

    config: RunConfig
    """Resolved: the model's vocabulary has a size."""
    num_parameters: int
    mesh: Mapping[str, int]
    """Devices along each axis."""
    batch_shape: tuple[int, int]
    """Rows and length of the largest batch, over all devices."""
    memory: Memory
    model_flops: float
    """FLOPs that the model needs for the batch, by the shapes of its kernels, shared evenly."""
    compiled_flops: float
    """FLOPs of the program, repetitions by rematerialisation and by several devices included; 0
    where XLA does not report them."""
    traffic: float
    """Bytes of memory that the program reads and writes."""
    collectives: Mapping[str, Total]
    """What is sent to other devices, by kind."""
    seconds: float
    """Spent on lowering and compiling for simulated devices."""
    gpu_program: GPUProgram | None = None
    """If not None, memory and collectives are this program's."""

    @property
    def num_devices(self) -> int:
        """Devices of the mesh."""
        return math.prod(self.mesh.values())


def make_plan(config: RunConfig, devices: Sequence[jax.Device]) -> Plan:
    """Compile the train step of a configuration for these devices, and analyse it.

    Raises:
        UserError: when configuration and mesh do not go together, or the vocabulary is not known.
    """
    require_x64(config.model.dtype)
    mesh = make_mesh(config.mesh, devices)
    spec = abstract_spec(config)
    batch = largest_batch(spec.config, mesh)
    program = build(with_plain_attention(spec), mesh)
    begun = time.perf_counter()
    lowered = program.train_step.lower(program.state, batch.arrays)
    compiled = lowered.compile(dict(cpu_options(config.model.remat)))
    seconds = time.perf_counter() - begun
    memory = split_memory(program, batch.arrays, compiled.memory_analysis())
    flops, traffic = work_of_layers(spec, mesh) if config.model.scan_layers else work_of(compiled)
    slices = config.accumulation
    return Plan(
        config=spec.config,
        num_parameters=num_parameters(program.state.params),
        mesh=dict(mesh.shape),
        batch_shape=batch.shape,
        memory=memory,
        model_flops=batch.flops / len(devices),
        # XLA counts the loop over the slices once.
        compiled_flops=slices * flops,
        traffic=slices * traffic - (slices - 1) * _update_traffic(memory),
        collectives=totals(collectives(compiled.as_text())),
        seconds=seconds,
    )


def with_plain_attention(spec: TrainSpec) -> TrainSpec:
    """The run with `plain` for `auto`, whose choice is that of the device which plans.

    Plain holds the most; and XLA counts the work of blockwise attention's loops once.
    """
    if spec.config.model.attention != "auto":
        return spec
    return with_model(spec, attention="plain")


def with_model(spec: TrainSpec, **changes: Any) -> TrainSpec:
    """The run of a model with other options."""
    model: Any = dataclasses.replace(spec.config.model, **changes)
    return dataclasses.replace(spec, config=dataclasses.replace(spec.config, model=model))


def work_of(compiled: Any) -> tuple[float, float]:
    """FLOPs of a compiled program, and bytes that it reads and writes; 0 where they are unknown.

    XLA counts a loop's body once.
    """
    costs = compiled.cost_analysis() or {}
    return costs.get("flops", 0.0), costs.get("bytes accessed", 0.0)


def work_of_layers(spec: TrainSpec, mesh: Mesh) -> tuple[float, float]:
    """`work_of` of a step whose layers are scanned, every layer counted.

    Steps without the loop, of one layer and of two, differ by the work of a layer.
    """

    def work(num_layers: int) -> tuple[float, float]:
        shallow = with_model(spec, num_layers=num_layers, scan_layers=False)
        program = build(with_plain_attention(shallow), mesh)
        batch = largest_batch(shallow.config, mesh)
        lowered = program.train_step.lower(program.state, batch.arrays)
        return work_of(lowered.compile(dict(cpu_options(spec.config.model.remat))))

    layers = spec.config.model.num_layers
    (flops, traffic), (more_flops, more_traffic) = work(1), work(2)
    return (
        flops + (layers - 1) * (more_flops - flops),
        traffic + (layers - 1) * (more_traffic - traffic),
    )


def split_memory(program: Program, batch: PyTree, analysis: Any) -> Memory:
    """The parts of what `memory_analysis` gives; their sum is `analysed_total`."""
    parameters, rows = shard_bytes(program.state.params), shard_bytes(batch)
    gradients = min(parameters, analysis.temp_size_in_bytes)
    return Memory(
        parameters=parameters,
        optimizer=analysis.argument_size_in_bytes - parameters - rows,
        batch=rows,
        gradients=gradients,
        activations=analysis.temp_size_in_bytes - gradients,
        results=analysis.output_size_in_bytes
        - analysis.alias_size_in_bytes
        + analysis.generated_code_size_in_bytes,
    )


def analysed_total(analysis: Any) -> int:
    """Bytes that a device holds during a compiled program, by its `memory_analysis`."""
    return (
        analysis.argument_size_in_bytes
        + analysis.output_size_in_bytes
        - analysis.alias_size_in_bytes
        + analysis.temp_size_in_bytes
        + analysis.generated_code_size_in_bytes
    )


def shard_bytes(tree: PyTree) -> int:
    """Bytes that the shards of arrays, or of their shapes, take on one device."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def _update_traffic(memory: Memory) -> int:
    """Bytes of the update after all slices: state and gradients read once and written once."""
    return 2 * (memory.parameters + memory.optimizer + memory.gradients)
