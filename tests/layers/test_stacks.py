"""Rematerialised and scanned blocks: the same values and gradients, from less memory or code."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.layers.dropout import fold_path
from jaxformer.models.stacked import stack_layers
from tests.objectives import gradient

MODELS = ("gpt", "transformer", "bert")


@pytest.mark.parametrize(
    "name",
    ["gpt", *(pytest.param(name, marks=pytest.mark.slow) for name in ("transformer", "bert"))],
)
@pytest.mark.parametrize("remat", ["dots", "full"])
def test_loss_and_gradients_equal_those_with_saved_activations(name, remat):
    with jax.enable_x64(True):
        kept, params, batch = gradient(name, num_layers=1)
        again, same, _ = gradient(name, num_layers=1, remat=remat)
        jax.tree.map(np.testing.assert_array_equal, params, same)
        expected = jax.tree.leaves(kept(params, batch))
        for a, b in zip(jax.tree.leaves(again(params, batch)), expected, strict=True):
            assert a.dtype == jnp.float64
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-12 * max(1.0, np.abs(b).max()))


@pytest.mark.parametrize("name", MODELS)
def test_each_block_is_recomputed_separately(name):
    def repeated(**changes: Any) -> int:
        with jax.enable_x64(True):
            # A GELU's backward pass computes it again by itself.
            changes |= {"activation": "relu"}
            function, *arguments = gradient(name, num_layers=3, **changes)
            # The forward pass is inlined; the backward pass has one call per recomputed block.
            return str(jax.make_jaxpr(function)(*arguments)).count("prevent_cse=")

    assert repeated() == 0
    assert repeated(remat="full") == (6 if name == "transformer" else 3)


@pytest.mark.parametrize("name", MODELS)
def test_dots_repeats_no_product_with_parameters(name):
    def products(remat: str) -> int:
        function, *arguments = gradient(name, num_layers=1, dtype="float32", remat=remat)
        return str(jax.make_jaxpr(function)(*arguments)).count("dot_general")

    # Of each attention queries times keys and weights times values; besides them `full` repeats
    # queries, keys, values, the product up and what the sums before a norm need.
    attentions = 3 if name == "transformer" else 1
    assert products("dots") == products("none") + 2 * attentions
    assert products("full") > products("dots") + 4 * attentions


@pytest.mark.parametrize("remat", ["none", pytest.param("dots", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", MODELS)
def test_scanned_is_unrolled_with_the_same_dropout(name, remat):
    with jax.enable_x64(True):
        unrolled, params, batch = gradient(name, num_layers=3)
        scanned, _, _ = gradient(name, num_layers=3, remat=remat, scan_layers=True)
        loss, expected = unrolled(params, batch)
        found, gradients = scanned(stack_layers(params), batch)
        np.testing.assert_allclose(found, loss, rtol=1e-12)
        stacked = stack_layers(expected)
        assert jax.tree.structure(gradients) == jax.tree.structure(stacked)
        for a, b in zip(*map(jax.tree.leaves, (gradients, stacked)), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-12 * max(1.0, np.abs(b).max()))


@pytest.mark.parametrize("name", MODELS)
def test_the_program_of_scanned_layers_does_not_grow_with_their_number(name):
    def equations(num_layers: int) -> int:
        changes = {"dtype": "float32", "scan_layers": True}
        function, *arguments = gradient(name, num_layers=num_layers, **changes)
        return str(jax.make_jaxpr(function)(*arguments)).count(" = ")

    assert equations(7) == equations(2)


def test_the_key_of_a_traced_layer_is_that_of_its_index():
    key = jax.random.key(3)
    traced = jax.jit(lambda index: fold_path(key, "blocks", index))
    for index in range(3):
        expected = jax.random.key_data(fold_path(key, "blocks", index))
        np.testing.assert_array_equal(jax.random.key_data(traced(jnp.uint32(index))), expected)
