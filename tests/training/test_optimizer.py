"""The norm of a gradient is that of all its numbers, however they are laid out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.training.optimizer import global_norm

VECTORS = [jnp.arange(5.0), jnp.float32(3.0), jnp.arange(3.0) - 7]
MATRICES = [jnp.ones((3, 5)), jnp.arange(14.0).reshape(2, 7) - 4]


@pytest.mark.parametrize("leaves", [VECTORS, MATRICES, VECTORS + MATRICES])
def test_the_global_norm_is_that_of_all_numbers_in_one_vector(leaves):
    everything = np.concatenate([np.ravel(leaf) for leaf in leaves])
    assert global_norm(leaves) == pytest.approx(np.linalg.norm(everything), rel=1e-6)


def test_vectors_take_one_sum_together():
    text = jax.jit(global_norm).lower(VECTORS + MATRICES).as_text()
    assert text.count("stablehlo.reduce(") == len(MATRICES) + 1
