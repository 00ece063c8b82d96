"""Rematerialised blocks: the same values and gradients from less memory."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.objectives import gradient

MODELS = ("gpt", "transformer", "bert")


@pytest.mark.parametrize(
    "name",
    ["gpt", *(pytest.param(name, marks=pytest.mark.slow) for name in ("transformer", "bert"))],
)
def test_loss_and_gradients_equal_those_with_saved_activations(name):
    with jax.enable_x64(True):
        kept, params, batch = gradient(name, num_layers=1)
        again, same, _ = gradient(name, num_layers=1, remat=True)
        jax.tree.map(np.testing.assert_array_equal, params, same)
        expected = jax.tree.leaves(kept(params, batch))
        for a, b in zip(jax.tree.leaves(again(params, batch)), expected, strict=True):
            assert a.dtype == jnp.float64
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-12 * max(1.0, np.abs(b).max()))


@pytest.mark.parametrize("name", MODELS)
def test_each_block_is_recomputed_separately(name):
    def repeated(**changes: Any) -> int:
        with jax.enable_x64(True):
            function, *arguments = gradient(name, num_layers=3, **changes)
            # The forward pass is inlined; the backward pass has one call per recomputed block.
            return str(jax.make_jaxpr(function)(*arguments)).count("prevent_cse=")

    assert repeated() == 0
    assert repeated(remat=True) == (6 if name == "transformer" else 3)
