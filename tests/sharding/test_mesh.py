"""Meshes: axes multiply to the devices, and what does not fit is refused in one line."""

import jax
import pytest

from jaxformer.config import MeshConfig
from jaxformer.errors import UserError
from jaxformer.sharding.mesh import check_batch_size, check_heads, make_mesh


def test_all_local_devices_lie_on_data_by_default():
    assert dict(make_mesh(MeshConfig()).shape) == {"data": 8, "fsdp": 1, "tensor": 1}


def test_one_axis_takes_what_the_others_leave():
    mesh = make_mesh(MeshConfig(data=2, fsdp=-1, tensor=2))
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 2}


def test_one_device_is_the_mesh_of_one():
    assert make_mesh(MeshConfig(), jax.devices()[:1]).size == 1


@pytest.mark.parametrize(
    "config",
    [
        MeshConfig(data=3),
        MeshConfig(data=16),
        MeshConfig(data=-1, fsdp=-1),
        MeshConfig(data=0),
        MeshConfig(data=-2),
        MeshConfig(data=-1, tensor=5),
    ],
)
def test_axes_that_do_not_fill_the_devices_are_refused(config):
    with pytest.raises(UserError, match="--mesh"):
        make_mesh(config)


def test_a_batch_that_does_not_split_is_refused_with_the_number_to_use():
    mesh = make_mesh(MeshConfig(data=4, fsdp=2))
    check_batch_size(16, 2, mesh)
    with pytest.raises(UserError, match=r"mesh.data 4 x mesh.fsdp 2: .* multiple of 16, .*tensor"):
        check_batch_size(24, 2, mesh)


def test_tensor_may_divide_the_heads_and_nothing_finer():
    mesh = make_mesh(MeshConfig(data=2, tensor=4))
    check_heads(8, mesh)
    for heads in (2, 6):
        with pytest.raises(UserError, match=rf"mesh.tensor 4 .* model.num-heads {heads}: "):
            check_heads(heads, mesh)
