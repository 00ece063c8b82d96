"""Scaled dot-product and multi-head attention (Vaswani et al. 2017, sections 3.2.1 and 3.2.2).

Four implementations compute the same function of H heads of queries and G of keys and values, of
which each serves H / G heads of queries (Ainslie et al. 2023, section 2); here G = H but for
`grouped_attention.py`:

plain         `attention`: one array of L x M scores per head; with dropout of the weights
query_blocks  `query_blocks_attention`: under a causal mask, half of the scores
flash         `flash_attention`: cuDNN's kernels, on NVIDIA GPUs in bfloat16
blockwise     `blockwise_attention`: memory O(L + M), on any device, in any type, under any mask

`choose_implementation` makes one of them of `auto`, and `attend` calls it.
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
from jaxformer.layers.soft_cap import soft_cap


def attention(
    q_BLHK: Float[Array, "B L H K"],
    k_BMGK: Float[Array, "B M G K"],
    v_BMGK: Float[Array, "B M G K"],
    mask: Mask | Bool[Array, "#B #H #L #M"] | None = None,
    dropout_rate: float = 0.0,
    dropout_key: Key[Array, ""] | None = None,
    cap: float | None = None,
) -> tuple[Float[Array, "B L H K"], Float[Array, "B H L M"]]:
    """softmax(q k^T / sqrt(K)) v, and the weights before dropout.

    With a cap the scores are under `soft_cap`. The softmax is taken in float32 or wider. A query
    without any key to attend to has weights, output and gradients 0.

    Raises:
        UserError: for a mask that is not boolean.
    """
    dense_BHLM = dense_mask(mask, q_BLHK.shape[1], k_BMGK.shape[1])
    q, k, v = (x.swapaxes(1, 2) for x in (q_BLHK, k_BMGK, v_BMGK))
    out_BHLK, weights_BHLM = _attend(q, k, v, dense_BHLM, cap, dropout_rate, dropout_key)
    return out_BHLK.swapaxes(1, 2), weights_BHLM


def query_blocks_attention(
    q_BLHK: Float[Array, "B L H K"],
    k_BMGK: Float[Array, "B M G K"],
    v_BMGK: Float[Array, "B M G K"],
    mask: Mask,
    cap: float | None = None,
    block: int | None = None,
) -> Float[Array, "B L H K"]:
    """softmax(q k^T / sqrt(K)) v, a block of queries after the other.

    Under a causal mask a block reads the keys up to its own end only, and of a window from its
    start. The blocks are unrolled: the program grows with their number.

    Raises:
        UserError: for a mask that is not boolean.
    """
    (L, M), block = (q_BLHK.shape[1], k_BMGK.shape[1]), block or QUERY_BLOCK
    dense_BHLM = dense_mask(mask, L, M)
    q, k, v = (x.swapaxes(1, 2) for x in (q_BLHK, k_BMGK, v_BMGK))
    outputs = []
    for start in range(0, L, block):
        end = min(start + block, L)
        first = 0 if mask.window is None else min(max(start + 1 - mask.window, 0), M - 1)
        seen = slice(first, min(end, M) if mask.causal else M)
        allowed = dense_BHLM
        if allowed is not None:
            allowed = allowed if allowed.shape[2] == 1 else allowed[:, :, start:end]
            allowed = allowed if allowed.shape[3] == 1 else allowed[..., seen]
        outputs.append(_attend(q[:, :, start:end], k[:, :, seen], v[:, :, seen], allowed, cap)[0])
    return jnp.concatenate(outputs, axis=2).swapaxes(1, 2)


def _attend(
    q_BHLK: Float[Array, "B H L K"],
    k_BGMK: Float[Array, "B G M K"],
    v_BGMK: Float[Array, "B G M K"],
    mask: Bool[Array, "#B #H #L #M"] | None,
    cap: float | None = None,
    dropout_rate: float = 0.0,
    dropout_key: Key[Array, ""] | None = None,
) -> tuple[Float[Array, "B H L K"], Float[Array, "B H L M"]]:
    """Heads first, which is how matrix products of a batch are computed.

    The queries of all heads of a group are rows of one product, of H / G L rows.
    """
    (B, H, L, K), (G, M) = q_BHLK.shape, k_BGMK.shape[1:3]
    rows = H // G * L
    wide = reduction_dtype(q_BHLK.dtype)
    q_BGRK = q_BHLK.reshape(B, G, rows, K)
    scores = jnp.einsum("BGRK,BGMK->BGRM", q_BGRK, k_BGMK, preferred_element_type=wide)
    scores = soft_cap(scores.reshape(B, H, L, M) / math.sqrt(K), cap)
    if mask is None:
        weights = jax.nn.softmax(scores, axis=-1)
    else:
        # The lowest finite number, not -inf, keeps the softmax of a row without keys free of NaN.
        scores = jnp.where(mask, scores, jnp.finfo(wide).min)
        weights = jnp.where(mask, jax.nn.softmax(scores, axis=-1), 0.0)
    weights = weights.astype(v_BGMK.dtype)
    dropped = dropout(weights, dropout_rate, dropout_key).reshape(B, G, rows, M)
    return jnp.einsum("BGRM,BGMK->BGRK", dropped, v_BGMK).reshape(B, H, L, K), weights


QUERY_BLOCK = 64
"""Queries of a block of `query_blocks_attention`."""
LONG, VERY_LONG = 128, 1024
"""Queries and keys from which blocks are faster than plain on CPUs, and blockwise as fast as blocks
of queries with a causal mask, as measured in float32 on two cores."""


def choose_implementation(
    q_BLHK: Float[Array, "B L H K"],
    k_BMGK: Float[Array, "B M G K"],
    mask: Mask,
    is_dropping: bool,
    cap: float | None = None,
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
    has_kernel = half and mask.dense_BHLM is None and cap is None
    if has_kernel and K % 8 == 0 and widest_flash_head(device) >= K:
        return "flash"
    length = min(q_BLHK.shape[1], k_BMGK.shape[1])
    if length < LONG or device.platform != "cpu":
        return "plain"
    return "query_blocks" if mask.causal and length < VERY_LONG else "blockwise"


def attend(
    q_BLHK: Float[Array, "B L H K"],
    kv: KVCache,
    mask: Mask | Bool[Array, "#B #H #L #M"] | None,
    implementation: AttentionImplementation,
    dropout_rate: float = 0.0,
    dropout_key: Key[Array, ""] | None = None,
    cap: float | None = None,
) -> tuple[Float[Array, "B L H K"], Float[Array, "B H L M"] | None]:
    """The output of all heads, and from plain each head's weights before dropout.

    Raises:
        UserError: for flash with a dense mask, and for a mask that is not boolean.
    """
    qkv = (q_BLHK, kv.k_BHMK.swapaxes(1, 2), kv.v_BHMK.swapaxes(1, 2))
    mask = as_mask(mask)
    if implementation == "auto":
        is_dropping = dropout_key is not None and dropout_rate > 0.0
        implementation = choose_implementation(qkv[0], qkv[1], mask, is_dropping, cap)
    if implementation == "flash":
        return flash_attention(*qkv, mask), None
    if implementation == "blockwise":
        return blockwise_attention(*qkv, mask, cap), None
    if implementation == "query_blocks":
        return query_blocks_attention(*qkv, mask, cap), None
    return attention(*qkv, mask, dropout_rate, dropout_key, cap)


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
        weights_key = fold_path(dropout_key, "weights")
        out_BLHK, weights_BHLM = attend(
            q_BLHK, kv, mask, implementation, self.dropout_rate, weights_key
        )
        return self.out(out_BLHK.reshape(*out_BLHK.shape[:2], -1)), weights_BHLM

    def split_heads(self, x_BLD: Float[Array, "B L D"]) -> Float[Array, "B L H K"]:
        """View the width as H heads of K."""
        B, L, D = x_BLD.shape
        return x_BLD.reshape(B, L, self.num_heads, D // self.num_heads)
