"""What the feed-forward network keeps for its backward pass."""

import jax
import jax.numpy as jnp
import pytest

from jaxformer.layers.mlp import ACTIVATIONS


@pytest.mark.parametrize("name", ["gelu", "gelu_tanh"])
def test_a_gelu_keeps_its_input_alone(name):
    x = jnp.linspace(-3.0, 3.0, 7)
    _, backward = jax.vjp(ACTIVATIONS[name], x)
    kept = [leaf for leaf in jax.tree.leaves(backward) if leaf.shape == x.shape]
    assert len(kept) == 1
    assert jnp.array_equal(kept[0], x)
