"""Twenty steps of AdamW on any mesh of eight devices equal those on one device."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxformer.config import MeshConfig
from jaxformer.parity.bounds import BOUNDS, FLOAT32_LOSSES
from jaxformer.parity.engine.settings import arithmetic
from jaxformer.porting.compare import ZERO_GRADIENT, relative_error
from jaxformer.training import chunks
from tests.meshes import EACH_MESH, EVERY_MESH, Ran, run, toy_run

BOUND = BOUNDS["model", "float64"]


@pytest.fixture(scope="module")
def in_float32() -> Ran:
    return run(toy_run(), MeshConfig(), jax.devices()[:1])


@pytest.fixture(scope="module")
def in_float64() -> Ran:
    with arithmetic("float64"):
        return run(toy_run("float64"), MeshConfig(), jax.devices()[:1])


def assert_equal(found: Ran, expected: Ran) -> None:
    assert relative_error(found.losses, expected.losses) <= BOUND
    assert relative_error(found.grad_norms, expected.grad_norms) <= BOUND
    assert found.state.keys() == expected.state.keys()
    for path, leaf in found.state.items():
        # The gradient of a key bias is exactly zero; its rounding noise is compared absolutely.
        error = relative_error(leaf, expected.state[path], path.endswith(ZERO_GRADIENT))
        assert error <= BOUND, path


@pytest.mark.slow  # the quick set compares the state, in float64
@pytest.mark.optimized  # else sums are rounded more
@EVERY_MESH
def test_float32_losses_on_a_mesh_equal_those_of_one_device(in_float32, mesh):
    losses = run(toy_run(), mesh).losses
    np.testing.assert_allclose(losses, in_float32.losses, rtol=0, atol=FLOAT32_LOSSES)


@EACH_MESH  # parity_tests/test_meshes.py compares with the twin
def test_float64_state_on_a_mesh_equals_that_of_one_device(in_float64, mesh):
    with arithmetic("float64"):
        found = run(toy_run("float64"), mesh)
    assert_equal(found, in_float64)


@EACH_MESH
def test_a_loss_in_chunks_on_a_mesh_equals_that_of_all_logits_on_one_device(
    in_float64, mesh, monkeypatch
):
    monkeypatch.setattr(chunks, "LARGEST_CHUNK", 16 * 64 * 3)  # the 16 tokens of a row in eight
    with arithmetic("float64"):
        found = run(toy_run("float64"), mesh)
    assert_equal(found, in_float64)


@EACH_MESH
def test_scanned_layers_on_a_mesh_equal_a_list_on_one_device(mesh):
    """Losses and norms of five steps, which depend on every parameter and moment."""
    config = toy_run("float64", num_layers=2, steps=5)
    model = dataclasses.replace(config.model, scan_layers=True)
    with arithmetic("float64"):
        found = run(dataclasses.replace(config, model=model), mesh)
        expected = run(config, MeshConfig(), jax.devices()[:1])
    assert relative_error(found.losses, expected.losses) <= BOUND
    assert relative_error(found.grad_norms, expected.grad_norms) <= BOUND


def test_the_compared_values_change_during_training(in_float64):
    """If every update were 0, all meshes would agree trivially."""
    with arithmetic("float64"):
        first = run(toy_run("float64", steps=1), MeshConfig(), jax.devices()[:1])
    for path, leaf in in_float64.state.items():
        assert leaf.dtype == (np.int32 if path.endswith(("step", "count")) else np.float64), path
        if not path.endswith(ZERO_GRADIENT):
            assert relative_error(first.state[path], leaf) > 1e-4, path
    assert len([path for path in in_float64.state if path.startswith("params/")]) == 20
    assert len([path for path in in_float64.state if "/nu/" in path]) == 20


@pytest.mark.slow  # parity_tests/test_meshes.py accumulates on a mesh too
def test_accumulated_slices_on_a_mesh_equal_those_on_one_device():
    config = toy_run(accumulation=2)
    alone = run(config, MeshConfig(), jax.devices()[:1])
    spread = run(config, MeshConfig(data=4, fsdp=2))
    np.testing.assert_allclose(spread.losses, alone.losses, rtol=0, atol=FLOAT32_LOSSES)
