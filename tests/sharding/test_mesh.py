"""Meshes: the axes multiply to the number of devices; anything else is refused in one line."""

import jax
import pytest

from jaxformer.config import MeshConfig
from jaxformer.errors import UserError
from jaxformer.sharding.mesh import check_batch_size, check_heads, make_mesh


def test_by_default_all_devices_are_on_the_data_axis():
    assert dict(make_mesh(MeshConfig()).shape) == {"data": 8, "fsdp": 1, "tensor": 1}


def test_one_axis_takes_the_remaining_devices():
    mesh = make_mesh(MeshConfig(data=2, fsdp=-1, tensor=2))
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 2}


def test_a_single_device_is_a_mesh_of_size_one():
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


def test_a_batch_that_does_not_split_is_refused_with_the_multiple_to_use():
    mesh = make_mesh(MeshConfig(data=4, fsdp=2))
    check_batch_size(16, 2, mesh)
    with pytest.raises(UserError, match=r"batch-size 24 .*mesh\.data 4 .*mesh\.fsdp 2.* 16"):
        check_batch_size(24, 2, mesh)


def test_the_tensor_axis_must_divide_the_number_of_heads():
    mesh = make_mesh(MeshConfig(data=2, tensor=4))
    check_heads(8, mesh)
    for heads in (2, 6):
        with pytest.raises(UserError, match=rf"mesh\.tensor 4 .*model\.num-heads {heads}\b"):
            check_heads(heads, mesh)
