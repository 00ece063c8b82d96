"""Cross-entropy over tokens, summed together with the number of tokens it was summed over.

Sums rather than means, so that a batch may be cut anywhere (accumulation slices, devices, whole
validation splits) and the mean over tokens comes out the same.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def cross_entropy(
    logits_BLV: Float[Array, "B L V"],
    targets_BL: Int[Array, "B L"],
    mask_BL: Bool[Array, "B L"],
) -> tuple[Float[Array, ""], Int[Array, ""]]:
    """(sum of -log softmax(logits)[target], number of tokens) where the mask is True.

    In nats, in float32 or wider. Equal to torch.nn.functional.cross_entropy with reduction='sum'.
    """
    wide = logits_BLV.astype(jnp.promote_types(logits_BLV.dtype, jnp.float32))
    log_normaliser = jax.nn.logsumexp(wide, axis=-1)
    target_logits = jnp.take_along_axis(wide, targets_BL[..., None], axis=-1)[..., 0]
    losses_BL = jnp.where(mask_BL, log_normaliser - target_logits, 0.0)
    return losses_BL.sum(), mask_BL.sum(dtype=jnp.int32)
