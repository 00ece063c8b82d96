"""Attention by cuDNN's fused kernels on NVIDIA GPUs (Dao et al. 2022), in bfloat16 or float16.

Forward and backward never have an array of L x M. The kernels take a causal flag, a window and the
lengths of the rows; a dense mask they would read as such an array.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxformer.errors import UserError
from jaxformer.layers.masks import Mask


def flash_attention(
    q_BLHK: Float[Array, "B L H K"],
    k_BMGK: Float[Array, "B M G K"],
    v_BMGK: Float[Array, "B M G K"],
    mask: Mask,
    kernel: Literal["cudnn", "xla"] = "cudnn",
) -> Float[Array, "B L H K"]:
    """softmax(q k^T / sqrt(K)) v, the softmax in float32.

    `xla` is the same call on any device, by arrays: with it the proofs check what is passed on.

    Raises:
        UserError: for a mask with a dense part.
    """
    if mask.dense_BHLM is not None:
        raise UserError(
            "model.attention flash takes no dense mask: give the lengths of padded rows, or choose "
            "--model.attention auto"
        )
    lengths = mask.lengths_B
    # A query without keys would get the mean of V. A row without any is computed as of length 1.
    attended = None if lengths is None else jnp.maximum(lengths, 1).astype(jnp.int32)
    out_BLHK = jax.nn.dot_product_attention(
        q_BLHK,
        k_BMGK,
        v_BMGK,
        is_causal=mask.causal,
        local_window_size=None if mask.window is None else (mask.window - 1, 0),
        key_value_seq_lengths=attended,
        implementation=kernel,
    )
    if lengths is None:
        return out_BLHK
    first_key_L = 0 * jnp.arange(1)
    if mask.window is not None:
        first_key_L = jnp.maximum(jnp.arange(q_BLHK.shape[1]) + 1 - mask.window, 0)
    has_key_BL = lengths[:, None] > first_key_L
    return jnp.where(has_key_BL[:, :, None, None], out_BLHK, 0.0)


def widest_flash_head(device: jax.Device) -> int:
    """The largest K that cuDNN takes on this device, in multiples of 8; 0 if it has no kernel."""
    capability = str(getattr(device, "compute_capability", ""))  # 9.0 of an H100; gfx90a of AMD's
    if not capability.replace(".", "").isdecimal() or float(capability) < 8.0:
        return 0
    return 256 if float(capability) >= 9.0 else 128
