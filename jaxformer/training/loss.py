"""Losses over tokens, and their accuracy: each is a sum and the number of tokens in it.

Cross-entropy, and label smoothing (Szegedy et al. 2016, section 7; Vaswani et al. 2017, section
5.4) in its two usual forms: PyTorch's, which spreads eps over all V tokens, and the Annotated
Transformer's, which spreads it over all but the target and the padding token.

With sums rather than means a batch may be split anywhere (accumulation slices, devices, whole
validation splits) without a change of the mean over tokens. All are in nats, in float32 or wider.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxformer.layers.masks import require_boolean
from jaxformer.layers.precision import upcast

SumAndCount = tuple[Float[Array, ""], Int[Array, ""]]
"""A loss, or 1 for what is right, summed over the tokens that count, and their number."""


def cross_entropy(
    logits_BLV: Float[Array, "B L V"],
    targets_BL: Int[Array, "B L"],
    mask_BL: Bool[Array, "B L"],
) -> SumAndCount:
    """(sum of -log softmax(logits)[target], number of tokens) where the mask is True.

    Equal to torch.nn.functional.cross_entropy with reduction='sum'.
    """
    wide = upcast(logits_BLV)
    log_normaliser = jax.nn.logsumexp(wide, axis=-1)
    target_logits = at_targets(wide, targets_BL)
    return masked_sum(log_normaliser - target_logits, mask_BL)


def smoothed_cross_entropy(
    logits_BLV: Float[Array, "B L V"],
    targets_BL: Int[Array, "B L"],
    mask_BL: Bool[Array, "B L"],
    smoothing: float,
) -> SumAndCount:
    """-sum_v q_v log p_v of each token, q = (1 - eps) at the target + eps / V at every token.

    Equal to torch.nn.functional.cross_entropy with label_smoothing=eps and reduction='sum'.
    """
    log_probs = jax.nn.log_softmax(upcast(logits_BLV), axis=-1)
    target_log_probs = at_targets(log_probs, targets_BL)
    losses_BL = -(1.0 - smoothing) * target_log_probs - smoothing * log_probs.mean(-1)
    return masked_sum(losses_BL, mask_BL)


def label_smoothing_kl(
    logits_BLV: Float[Array, "B L V"],
    targets_BL: Int[Array, "B L"],
    mask_BL: Bool[Array, "B L"],
    smoothing: float,
    padding_id: int,
) -> SumAndCount:
    """KL(q || p) of each token, q = 1 - eps at the target, 0 at padding, eps / (V - 2) elsewhere.

    The loss of the Annotated Transformer (Rush 2018, "Label Smoothing"), 0 where p = q; V > 2.
    """
    log_probs = jax.nn.log_softmax(upcast(logits_BLV), axis=-1)
    V = logits_BLV.shape[-1]
    tokens = jnp.arange(V)
    q_BLV = jnp.where(tokens == targets_BL[..., None], 1.0 - smoothing, smoothing / (V - 2))
    q_BLV = jnp.where(tokens == padding_id, 0.0, q_BLV).astype(log_probs.dtype)
    losses_BL = (jax.scipy.special.xlogy(q_BLV, q_BLV) - q_BLV * log_probs).sum(-1)
    return masked_sum(losses_BL, mask_BL)


def accuracy(
    logits_BLV: Float[Array, "B L V"],
    targets_BL: Int[Array, "B L"],
    mask_BL: Bool[Array, "B L"],
) -> SumAndCount:
    """(number of tokens with argmax logits = target, number of tokens) where the mask is True."""
    wide = upcast(logits_BLV)
    right_BL = wide.argmax(axis=-1) == targets_BL
    return masked_sum(right_BL.astype(wide.dtype), mask_BL)


@jax.custom_jvp
def at_targets(x_BLV: Float[Array, "B L V"], targets_BL: Int[Array, "B L"]) -> Float[Array, "B L"]:
    """x[target] of each token.

    Its gradient is elementwise and fuses with the softmax's. That of the indexing is a scatter into
    an array of (B, L, V), in float32 the largest of a step.
    """
    return jnp.take_along_axis(x_BLV, targets_BL[..., None], axis=-1)[..., 0]


@at_targets.defjvp
def _at_targets_tangent(
    primals: tuple[Array, Array], tangents: tuple[Array, Any]
) -> tuple[Array, Array]:
    is_target_BLV = jnp.arange(primals[0].shape[-1]) == primals[1][..., None]
    return at_targets(*primals), jnp.where(is_target_BLV, tangents[0], 0.0).sum(axis=-1)


def masked_sum(losses_BL: Float[Array, "B L"], mask_BL: Bool[Array, "B L"]) -> SumAndCount:
    """The sum where the mask is True, and the number of tokens there.

    Raises:
        UserError: for a mask that is not boolean, such as weights of the tokens.
    """
    require_boolean(mask_BL)
    return jnp.where(mask_BL, losses_BL, 0.0).sum(), mask_BL.sum(dtype=jnp.int32)
