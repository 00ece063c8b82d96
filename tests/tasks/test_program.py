"""A run's program: its state is drawn where it belongs."""

import math
import re

import jax
import numpy as np

from jaxformer.config import MeshConfig
from jaxformer.models.functional import flat_params
from jaxformer.planning.hlo import collectives
from jaxformer.sharding.mesh import make_mesh
from jaxformer.tasks.language_modeling import language_spec
from jaxformer.tasks.program import Program, build
from tests.meshes import EVERY_MESH, toy_run


def program_on(mesh: MeshConfig, devices=None) -> Program:
    return build(language_spec(toy_run()), make_mesh(mesh, devices))


@EVERY_MESH
def test_a_fresh_state_is_that_of_one_device(mesh):
    """To 4 units in the last place: jax 0.12 fuses a divided draw otherwise than a whole one."""
    alone = flat_params(program_on(MeshConfig(), jax.devices()[:1]).fresh_state())
    program = program_on(mesh)
    state = program.fresh_state()
    for path, leaf in flat_params(state).items():
        assert leaf.dtype == alone[path].dtype
        if leaf.dtype == np.float32:
            np.testing.assert_array_max_ulp(np.asarray(leaf), np.asarray(alone[path]), maxulp=4)
        else:
            np.testing.assert_array_equal(leaf, alone[path])
    assert jax.tree.map(lambda x: x.sharding, state) == jax.tree.map(
        lambda x: x.sharding, program.state
    )


@EVERY_MESH
def test_no_device_draws_more_than_its_part(mesh):
    """No array of the drawing program is larger than a device's part of the largest parameter."""
    program = program_on(mesh)
    drawing = program.fresh_state.lower().compile().as_text()
    assert collectives(drawing) == []
    sizes = [
        math.prod(int(size) for size in shape.split(","))
        for shape in re.findall(r"\b(?:f32|u32|s32|pred)\[([\d,]+)\]", drawing)
    ]
    parts = [leaf.sharding.shard_shape(leaf.shape) for leaf in jax.tree.leaves(program.state)]
    assert max(sizes) == max(math.prod(part) for part in parts)


def test_drawing_takes_memory_for_a_part_of_the_state():
    def peak(mesh: MeshConfig) -> int:
        found = program_on(mesh).fresh_state.lower().compile().memory_analysis()
        return found.output_size_in_bytes + found.temp_size_in_bytes

    # The vectors and the position table are on every device.
    assert peak(MeshConfig(data=1, fsdp=8)) < 0.25 * peak(MeshConfig(data=8))
