"""Scaled dot-product and multi-head attention (Vaswani et al. 2017, sections 3.2.1 and 3.2.2).

Four implementations compute the same function of queries, keys and values:

plain         `attention`: one array of L x M scores per head; with dropout of the weights
query_blocks  `query_blocks_attention`: under a causal mask, half of the scores
flash         `flash_attention`: cuDNN's kernels, on NVIDIA GPUs in bfloat16
blockwise     `blockwise_attention`: memory O(L + M), on any device, in any type, under any mask

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
from jaxformer.layers.precision import reduction_dtype


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
    dense_BHLM = dense_mask(mask, q_BLHK.shape[1], k_BMHK.shape[1])
    q, k, v = (x.swapaxes(1, 2) for x in (q_BLHK, k_BMHK, v_BMHK))
    out_BHLK, weights_BHLM = _attend(q, k, v, dense_BHLM, dropout_rate, dropout_key)
    return out_BHLK.swapaxes(1, 2), weights_BHLM


def query_blocks_attention(
    q_BLHK: Float[Array, "B L H K"],
    k_BMHK: Float[Array, "B M H K"],
    v_BMHK: Float[Array, "B M H K"],
    mask: Mask,
    block: int | None = None,
) -> Float[Array, "B L H K"]:
    """softmax(q k^T / sqrt(K)) v, a block of queries after the other.

    Under a causal mask a block reads the keys up to its own end only. The blocks are unrolled: the
    program grows with their number.

    Raises:
        UserError: for a mask that is not boolean.
    """
    (L, M), block = (q_BLHK.shape[1], k_BMHK.shape[1]), block or QUERY_BLOCK
    dense_BHLM = dense_mask(mask, L, M)
    q, k, v = (x.swapaxes(1, 2) for x in (q_BLHK, k_BMHK, v_BMHK))
    outputs = []
    for start in range(0, L, block):
        end = min(start + block, L)
        seen = min(end, M) if mask.causal else M
        allowed = dense_BHLM
        if allowed is not None:
            allowed = allowed if allowed.shape[2] == 1 else allowed[:, :, start:end]
            allowed = allowed if allowed.shape[3] == 1 else allowed[..., :seen]
        outputs.append(_attend(q[:, :, start:end], k[:, :, :seen], v[:, :, :seen], allowed)[0])
    return jnp.concatenate(outputs, axis=2).swapaxes(1, 2)


def _attend(
    q_BHLK: Float[Array, "B H L K"],
    k_BHMK: Float[Array, "B H M K"],
    v_BHMK: Float[Array, "B H M K"],
    mask: Bool[Array, "#B #H #L #M"] | None,
    dropout_rate: float = 0.0,
    dropout_key: Key[Array, ""] | None = None,
) -> tuple[Float[Array, "B H L K"], Float[Array, "B H L M"]]:
    """Heads first, which is how matrix products of a batch are computed."""
    wide = reduction_dtype(q_BHLK.dtype)
    scores = jnp.einsum("BHLK,BHMK->BHLM", q_BHLK, k_BHMK, preferred_element_type=wide)
    scores = scores / math.sqrt(q_BHLK.shape[-1])
    if mask is None:
        weights = jax.nn.softmax(scores, axis=-1)
    else:
        # The lowest finite number, not -inf, keeps the softmax of a row without keys free of NaN.
        scores = jnp.where(mask, scores, jnp.finfo(wide).min)
        weights = jnp.where(mask, jax.nn.softmax(scores, axis=-1), 0.0)
    weights = weights.astype(v_BHMK.dtype)
    dropped = dropout(weights, dropout_rate, dropout_key)
    return jnp.einsum("BHLM,BHMK->BHLK", dropped, v_BHMK), weights


QUERY_BLOCK = 64
"""Queries of a block of `query_blocks_attention`."""
LONG, VERY_LONG = 128, 1024
"""Queries and keys from which blocks are faster than plain on CPUs, and blockwise as fast as blocks
of queries with a causal mask, as measured in float32 on two cores."""


def choose_implementation(
    q_BLHK: Float[Array, "B L H K"], k_BMHK: Float[Array, "B M H K"], mask: Mask, is_dropping: bool
) -> AttentionImplementation:
    """The implementation of one call by `auto`.

    Flash where cuDNN has a kernel for the device, the type, the head width and the mask; else on
    CPUs from `LONG` queries and keys on blockwise, and blocks of queries if the mask is causal and
    they are fewer than `VERY_LONG`; else plain, which alone drops weights.
    """
    if is_dropping:
        return "plain"
    device = jax.config.jax_default_device  # type: ignore[attr-defined]
    device = device if isinstance(device, jax.Device) else jax.devices(device)[0]
    K, half = q_BLHK.shape[-1], q_BLHK.dtype.name in ("bfloat16", "float16")
    if half and mask.dense_BHLM is None and K % 8 == 0 and widest_flash_head(device) >= K:
        return "flash"
    length = min(q_BLHK.shape[1], k_BMHK.shape[1])
    if length < LONG or device.platform != "cpu":
        return "plain"
    return "query_blocks" if mask.causal and length < VERY_LONG else "blockwise"


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
        elif implementation == "query_blocks":
            out_BLHK = query_blocks_attention(*qkv, mask)
        else:
            out_BLHK, weights_BHLM = attention(*qkv, mask, self.dropout_rate, weights_key)
        return self.out(out_BLHK.reshape(*out_BLHK.shape[:2], -1)), weights_BHLM

    def split_heads(self, x_BLD: Float[Array, "B L D"]) -> Float[Array, "B L H K"]:
        """View the width as H heads of K."""
        B, L, D = x_BLD.shape
        return x_BLD.reshape(B, L, self.num_heads, D // self.num_heads)
