"""Muon: momentum whose singular values are brought near 1 (Jordan et al. 2024).

    https://kellerjordan.github.io/posts/muon

With them near 1, every direction of a matrix moves about as far, not only the few that dominate its
gradient. A matrix (I, O) of orthonormal rows or columns has entries of root mean square
1 / sqrt(max(I, O)); multiplied by 0.2 sqrt(max(I, O)) it moves as AdamW would, so one learning rate
serves both (Liu et al. 2025, section 2.2). `torch.optim.Muon` is the same with
adjust_lr_fn="match_rms_adamw", but for its iteration in bfloat16; ours is in float32 or wider.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from jaxformer.layers.precision import upcast

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""a, b, c of one iteration: the steepest at 0 that leaves singular values between 0.7 and 1.2."""
ITERATIONS = 5
RMS = 0.2
"""Root mean square of AdamW's updates, as measured in training."""


class MuonState(NamedTuple):
    """What the next update depends on."""

    momentum: PyTree[Array]


def scale_by_muon(decay: float) -> optax.GradientTransformation:
    """m <- beta m + (1 - beta) g, and 0.2 sqrt(max(I, O)) orthogonalize(beta m + (1 - beta) g).

    The gradient counts twice, as Nesterov's. Leaves are matrices, or stacks of them.
    """

    def update(
        grads: PyTree, state: MuonState, params: PyTree | None = None
    ) -> tuple[PyTree, MuonState]:
        momentum = jax.tree.map(lambda m, g: decay * m + (1 - decay) * g, state.momentum, grads)
        ahead = jax.tree.map(lambda m, g: decay * m + (1 - decay) * g, momentum, grads)
        return jax.tree.map(_direction, ahead), MuonState(momentum)

    return optax.GradientTransformation(
        lambda params: MuonState(jax.tree.map(jnp.zeros_like, params)), update
    )


def _direction(m: Float[Array, "*N I O"]) -> Float[Array, "*N I O"]:
    return RMS * math.sqrt(max(m.shape[-2:])) * orthogonalize(m)


def orthogonalize(m: Float[Array, "*N I O"]) -> Float[Array, "*N I O"]:
    """About U V^T of m = U S V^T, by iterating x <- a x + (b x x^T + c (x x^T)²) x (Newton-Schulz).

    It starts from m divided by its Frobenius norm, at least 1e-7; the iteration is of the smaller
    of m's two sides.
    """
    is_tall = m.shape[-2] > m.shape[-1]
    x = upcast(m.mT if is_tall else m)
    norm = jnp.sqrt(jnp.square(x).sum(axis=(-2, -1), keepdims=True))
    x = x / jnp.maximum(norm, 1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if is_tall else x).astype(m.dtype)
