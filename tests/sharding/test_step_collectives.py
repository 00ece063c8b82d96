"""The collectives of a train step on each mesh, counted in the compiled program."""

import dataclasses
import functools
import math
import re

import jax
import pytest

from jaxformer.config import MeshConfig
from jaxformer.models.functional import flat_params
from jaxformer.planning.hlo import Collective, array_bytes, collectives
from jaxformer.sharding.mesh import make_mesh
from jaxformer.tasks.language_modeling import language_spec
from jaxformer.tasks.program import Program, build
from tests.meshes import toy_batches, toy_run

pytestmark = pytest.mark.optimized

LAYERS, ROWS = 2, 24
DATA, FSDP, TENSOR, MIXED = (
    MeshConfig(data=8),
    MeshConfig(data=1, fsdp=8),
    MeshConfig(data=4, tensor=2),
    MeshConfig(data=2, fsdp=2, tensor=2),
)


@functools.cache
def compiled(mesh: MeshConfig, accumulation: int = 1) -> tuple[Program, list[Collective]]:
    """24 rows of 16 tokens: on no mesh does an activation have the shape of a matrix."""
    config = toy_run(num_layers=LAYERS, batch_size=ROWS, accumulation=accumulation)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, dropout_rate=0.0))
    program = build(language_spec(config), make_mesh(mesh))
    batch = jax.device_put(toy_batches(1, ROWS)[0], program.rows)
    text = program.train_step.lower(program.state, batch).compile().as_text()
    return program, collectives(text)


def elements(array: str) -> int:
    """The number of elements of an array such as `f32[3,16,32]`."""
    return math.prod(int(size) for size in re.findall(r"\d+", array.partition("[")[2]))


def own_bytes(program: Program) -> int:
    """Bytes of one device's shards of the parameters."""
    leaves = jax.tree.leaves(program.state.params)
    return sum(4 * math.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in leaves)


def matrices(program: Program) -> dict[str, int]:
    """The number of elements of each matrix that can be sharded, over all devices."""
    leaves = flat_params(program.state.params)
    return {
        path: leaf.size
        for path, leaf in leaves.items()
        if leaf.ndim == 2 and path != "positions/embedding"
    }


def test_replicas_all_reduce_their_gradients_once_and_nothing_else():
    program, found = compiled(DATA)
    assert {one.kind for one in found} == {"all-reduce"}
    assert {one.devices for one in found} == {8}
    assert sum(one.times for one in found) <= 4, "fused into a few"
    # Each gradient (lookup and logits give the embedding one each), the loss and the token count.
    whole = own_bytes(program)
    lookup = 4 * matrices(program)["embed/embedding"]
    assert whole <= sum(one.bytes for one in found) <= whole + lookup + 8


def test_each_accumulation_slice_all_reduces_its_gradients():
    """The compiler leaves the all-reduce inside the loop over slices."""
    once = sum(one.bytes * one.times for one in compiled(DATA)[1])
    _, found = compiled(DATA, accumulation=3)
    assert sum(one.bytes * one.times for one in found) == 3 * once
    assert {one.times for one in found} == {3}
    assert not any(one.at_least for one in found)


def test_fsdp_gathers_each_matrix_and_reduces_each_gradient():
    program, found = compiled(FSDP)
    assert {one.kind for one in found} <= {"all-gather", "all-reduce", "reduce-scatter"}
    sizes = sorted(matrices(program).values())
    gathered = [
        elements(array) for one in found if one.kind == "all-gather" for array in one.arrays
    ]
    assert set(gathered) == set(sizes), "nothing but matrices is gathered"
    for size in set(sizes):
        # Once for the forward pass, at most once more for the backward pass.
        assert sizes.count(size) <= gathered.count(size) <= 2 * sizes.count(size)
    # A reduce-scatter would be enough; its result is an eighth of what it sums. XLA's GPU compiler
    # turns an all-reduce of which each device keeps a shard into one; the CPU compiler does not.
    summed = sum(
        one.bytes * (8 if one.kind == "reduce-scatter" else 1)
        for one in found
        if one.kind != "all-gather"
    )
    whole = 4 * sum(leaf.size for leaf in jax.tree.leaves(program.state.params))
    lookup = 4 * matrices(program)["embed/embedding"]
    norms = 4 * 2 * len(jax.tree.leaves(program.state.params))  # of clipping and of the metrics
    assert whole <= summed <= whole + lookup + 8 + norms


def test_accumulation_gathers_once_before_the_loop():
    """XLA's CPU compiler gathers before the loop; its GPU compiler and a plan, inside it."""
    _, found = compiled(FSDP, accumulation=3)
    assert {one.times for one in found if one.kind == "all-gather"} == {1}


@pytest.mark.parametrize(
    "mesh", [TENSOR, MIXED], ids=["tensor 2 x data 4", "tensor 2 x fsdp 2 x data 2"]
)
def test_tensor_all_reduces_activations_twice_per_block_and_pass(mesh):
    _, found = compiled(mesh)
    rows = ROWS // (mesh.data * mesh.fsdp)
    activation = rows * 16 * 32

    def sums(backward: bool) -> int:
        return sum(
            one.times
            for one in found
            if one.kind == "all-reduce"
            and one.devices == mesh.tensor
            and ("transpose(" in one.origin) == backward
            and any(elements(array) == activation for array in one.arrays)
        )

    # One more: the lookup in the sharded embedding, and the input of the output layer.
    assert sums(backward=False) == 2 * LAYERS + 1
    assert sums(backward=True) == 2 * LAYERS + 1


def test_tensor_never_gathers_a_sharded_weight():
    program, found = compiled(TENSOR)
    assert {one.kind for one in found} == {"all-reduce"}
    across = [array for one in found if one.devices == 2 for array in one.arrays]
    assert not {elements(array) for array in across} & set(matrices(program).values())
    # Gradients are summed over the replicas, each device's own shards.
    over_replicas = sum(one.bytes for one in found if one.devices == 4)
    lookup = 4 * matrices(program)["embed/embedding"] // 2
    assert own_bytes(program) <= over_replicas <= own_bytes(program) + lookup + 64


def test_a_mixed_mesh_gathers_no_activation():
    program, found = compiled(MIXED)
    gathers = [one for one in found if one.kind == "all-gather"]
    shards = {size // 2 for size in matrices(program).values()}
    whole = matrices(program)["embed/embedding"]
    for array in (array for one in gathers for array in one.arrays):
        # The output layer reads the whole embedding: XLA gathers over both axes at once.
        assert elements(array) in shards | {whole}, array
    gathered = sum(one.times * sum(map(array_bytes, one.arrays)) for one in gathers)
    assert gathered <= 2 * 4 * sum(matrices(program).values()) // 2 + 4 * whole
