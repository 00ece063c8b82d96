"""Scaled dot-product and multi-head attention (Vaswani et al. 2017, sections 3.2.1 and 3.2.2).

Three implementations compute the same function of queries, keys and values:

plain      `attention`: one array of L x M scores per head; with dropout of the weights
flash      `flash_attention`: cuDNN's kernels, on NVIDIA GPUs in bfloat16
blockwise  `blockwise_attention`: memory O(L + M), on any device, in any type, under any mask

`choose_implementation` makes one of them of `auto`.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from jaxformer.config import AttentionImplementation, BlockConfig
from jaxformer.layers.blockwise_attention import blockwise_attention
from jaxformer.layers.cache import KVCache, write_cache
from jaxformer.layers.dropout import dropout, fold_path
from jaxformer.layers.flash_attention import flash_attention, widest_flash_head
from jaxformer.layers.linear import Linear
from jaxformer.layers.masks import Mask, as_mask, dense_mask


def attention(
    q_BLHK: Float[Array, "B L H K"],
    k_BMHK: Float[Array, "B M H K"],
    v_BMHK: Float[Array, "B M H K"],
    mask: Mask | Bool[Array, "#B #H #L #M"] | None = None,
    dropout_rate: float = 0.0,
    dropout_key: Key[Array, ""] | None = None,
) -> tuple[Float[Array, "B L H K"], Float[Array, "B H L M"]]:
    """softmax(q k^T / sqrt(K)) v, and the weights before dropout.

    The softmax is taken in float32 or wider. A query without any key to attend to has weights,
    output and gradients 0.

    Raises:
        UserError: for a mask that is not boolean.
    """
    wide = jnp.promote_types(q_BLHK.dtype, jnp.float32)
    scores = jnp.einsum("BLHK,BMHK->BHLM", q_BLHK, k_BMHK, preferred_element_type=wide)
    scores = scores / math.sqrt(q_BLHK.shape[-1])
    mask = dense_mask(mask, *scores.shape[2:])
    if mask is None:
        weights = jax.nn.softmax(scores, axis=-1)
    else:
        # The lowest finite number, not -inf, keeps the softmax of a row without keys free of NaN.
        scores = jnp.where(mask, scores, jnp.finfo(wide).min)
        weights = jnp.where(mask, jax.nn.softmax(scores, axis=-1), 0.0)
    weights = weights.astype(v_BMHK.dtype)
    dropped = dropout(weights, dropout_rate, dropout_key)
    return jnp.einsum("BHLM,BMHK->BLHK", dropped, v_BMHK), weights


LONG = 128
"""Queries and keys from which blockwise is faster than plain on CPUs, as measured in float32 on two
cores."""


def choose_implementation(
    q_BLHK: Float[Array, "B L H K"], k_BMHK: Float[Array, "B M H K"], mask: Mask, is_dropping: bool
) -> AttentionImplementation:
    """The implementation of one call by `auto`.

    Flash where cuDNN has a kernel for the device, the type, the head width and the mask; else
    blockwise on CPUs from `LONG` queries and keys on; else plain, which alone drops weights.
    """
    if is_dropping:
        return "plain"
    device = jax.config.jax_default_device  # type: ignore[attr-defined]
    device = device if isinstance(device, jax.Device) else jax.devices(device)[0]
    K, half = q_BLHK.shape[-1], q_BLHK.dtype.name in ("bfloat16", "float16")
    if half and mask.dense_BHLM is None and K % 8 == 0 and widest_flash_head(device) >= K:
        return "flash"
    is_long = min(q_BLHK.shape[1], k_BMHK.shape[1]) >= LONG
    return "blockwise" if is_long and device.platform == "cpu" else "plain"


class MultiHeadAttention(nnx.Module):
    """H heads of `attention` on projections of width K = D / H, concatenated and projected."""

    def __init__(self, config: BlockConfig, rngs: nnx.Rngs):
        D = config.width
        self.query = Linear((D, D), config, rngs)
        self.key = Linear((D, D), config, rngs)
        self.value = Linear((D, D), config, rngs)
        self.out = Linear((D, D), config, rngs, residual=True)
        self.num_heads = config.num_heads
        self.dropout_rate = config.dropout_rate if config.attention_dropout else 0.0
        self.implementation = config.attention

    def __call__(
        self,
        x_BLD: Float[Array, "B L D"],
        memory: Float[Array, "B M D"] | KVCache | None = None,
        mask: Mask | Bool[Array, "#B #H #L #M"] | None = None,
        dropout_key: Key[Array, ""] | None = None,
        cache: KVCache | None = None,
        positions: Int[Array, "#B L"] | None = None,
    ) -> tuple[Float[Array, "B L D"], KVCache | None]:
        """Attend from x to the memory, by default x itself; returns the output and the cache.

        Args:
            x_BLD: the queries.
            memory: what is attended to, or its keys and values, projected by `project_kv`.
            mask: True where a query may attend to a key; with a cache, keys are its slots.
            dropout_key: of this layer; None turns dropout off.
            cache: keys and values of earlier tokens, to which those of x are added.
            positions: of x in the text, and its slots in the cache; unused without one.
        """
        q_BLHK = self.split_heads(self.query(x_BLD))
        memory = x_BLD if memory is None else memory
        kv = memory if isinstance(memory, KVCache) else self.project_kv(memory)
        if cache is not None:
            assert positions is not None, "a cache needs the positions of the new tokens"
            kv = cache = write_cache(cache, kv, positions)
        # Decoding has few queries and a dense mask over the slots.
        is_decoding = cache is not None or isinstance(memory, KVCache)
        implementation = "plain" if is_decoding else self.implementation
        return self.attend_to(q_BLHK, kv, mask, dropout_key, implementation)[0], cache

    def project_kv(self, memory_BMD: Float[Array, "B M D"]) -> KVCache:
        """Keys and values of the memory."""
        k_BMHK, v_BMHK = map(self.split_heads, (self.key(memory_BMD), self.value(memory_BMD)))
        return KVCache(k_BMHK.swapaxes(1, 2), v_BMHK.swapaxes(1, 2))

    def attend_to(
        self,
        q_BLHK: Float[Array, "B L H K"],
        kv: KVCache,
        mask: Mask | Bool[Array, "#B #H #L #M"] | None = None,
        dropout_key: Key[Array, ""] | None = None,
        implementation: AttentionImplementation = "plain",
    ) -> tuple[Float[Array, "B L D"], Float[Array, "B H L M"] | None]:
        """The projected output of all heads, and from plain each head's weights before dropout.

        Raises:
            UserError: for flash with a dense mask, and for a mask that is not boolean.
        """
        qkv = (q_BLHK, kv.k_BHMK.swapaxes(1, 2), kv.v_BHMK.swapaxes(1, 2))
        mask, weights_BHLM = as_mask(mask), None
        weights_key = fold_path(dropout_key, "weights")
        if implementation == "auto":
            is_dropping = weights_key is not None and self.dropout_rate > 0.0
            implementation = choose_implementation(qkv[0], qkv[1], mask, is_dropping)
        if implementation == "flash":
            out_BLHK = flash_attention(*qkv, mask)
        elif implementation == "blockwise":
            out_BLHK = blockwise_attention(*qkv, mask)
        else:
            out_BLHK, weights_BHLM = attention(*qkv, mask, self.dropout_rate, weights_key)
        return self.out(out_BLHK.reshape(*out_BLHK.shape[:2], -1)), weights_BHLM

    def split_heads(self, x_BLD: Float[Array, "B L D"]) -> Float[Array, "B L H K"]:
        """View the width as H heads of K."""
        B, L, D = x_BLD.shape
        return x_BLD.reshape(B, L, self.num_heads, D // self.num_heads)
