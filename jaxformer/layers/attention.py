"""Scaled dot-product and multi-head attention (Vaswani et al. 2017, sections 3.2.1 and 3.2.2)."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from jaxformer.config import BlockConfig
from jaxformer.layers.cache import KVCache, write_cache
from jaxformer.layers.dropout import dropout, fold_path
from jaxformer.layers.linear import Linear
from jaxformer.layers.masks import position_mask


def attention(
    q_BLHK: Float[Array, "B L H K"],
    k_BMHK: Float[Array, "B M H K"],
    v_BMHK: Float[Array, "B M H K"],
    mask: Bool[Array, "#B #H #L #M"] | None = None,
    dropout_rate: float = 0.0,
    dropout_key: Key[Array, ""] | None = None,
) -> tuple[Float[Array, "B L H K"], Float[Array, "B H L M"]]:
    """softmax(q k^T / sqrt(K)) v, and the weights before dropout.

    The softmax is taken in float32 or wider. A query that may attend to nothing has weights and
    output 0, and gradients 0.
    """
    wide = jnp.promote_types(q_BLHK.dtype, jnp.float32)
    scores = jnp.einsum("BLHK,BMHK->BHLM", q_BLHK, k_BMHK, preferred_element_type=wide)
    scores = scores / math.sqrt(q_BLHK.shape[-1])
    if mask is None:
        weights = jax.nn.softmax(scores, axis=-1)
    else:
        # The lowest finite number, not -inf, keeps the softmax of a row without keys free of NaN.
        scores = jnp.where(mask, scores, jnp.finfo(wide).min)
        weights = jnp.where(mask, jax.nn.softmax(scores, axis=-1), 0.0)
    weights = weights.astype(v_BMHK.dtype)
    dropped = dropout(weights, dropout_rate, dropout_key)
    return jnp.einsum("BHLM,BMHK->BLHK", dropped, v_BMHK), weights


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

    def __call__(
        self,
        x_BLD: Float[Array, "B L D"],
        memory_BMD: Float[Array, "B M D"] | None = None,
        mask: Bool[Array, "#B #H #L #M"] | None = None,
        dropout_key: Key[Array, ""] | None = None,
    ) -> Float[Array, "B L D"]:
        """Attend from x to the memory, by default x itself."""
        return self.with_weights(x_BLD, memory_BMD, mask, dropout_key)[0]

    def with_weights(
        self,
        x_BLD: Float[Array, "B L D"],
        memory_BMD: Float[Array, "B M D"] | None = None,
        mask: Bool[Array, "#B #H #L #M"] | None = None,
        dropout_key: Key[Array, ""] | None = None,
    ) -> tuple[Float[Array, "B L D"], Float[Array, "B H L M"]]:
        """The output and each head's weights, before dropout."""
        memory_BMD = x_BLD if memory_BMD is None else memory_BMD
        q_BLHK = self.split_heads(self.query(x_BLD))
        k_BMHK = self.split_heads(self.key(memory_BMD))
        v_BMHK = self.split_heads(self.value(memory_BMD))
        weights_key = fold_path(dropout_key, "weights")
        out_BLHK, weights_BHLM = attention(
            q_BLHK, k_BMHK, v_BMHK, mask, self.dropout_rate, weights_key
        )
        return self.out(out_BLHK.reshape(x_BLD.shape)), weights_BHLM

    def decode(
        self, x_BLD: Float[Array, "B L D"], positions: Int[Array, "B L"], cache: KVCache
    ) -> tuple[Float[Array, "B L D"], KVCache]:
        """Causal self-attention of new tokens to themselves and to all that the cache holds.

        Key and value of the token at position p are kept in slot p of the cache.
        """
        k_BLHK, v_BLHK = self.split_heads(self.key(x_BLD)), self.split_heads(self.value(x_BLD))
        cache = write_cache(cache, k_BLHK, v_BLHK, positions)
        slots = jnp.arange(cache.k_BMHK.shape[1])[None]
        q_BLHK = self.split_heads(self.query(x_BLD))
        mask = position_mask(positions, slots)
        out_BLHK, _ = attention(q_BLHK, cache.k_BMHK, cache.v_BMHK, mask)
        return self.out(out_BLHK.reshape(x_BLD.shape)), cache

    def remember(self, memory_BMD: Float[Array, "B M D"]) -> KVCache:
        """Keys and values of a memory that many queries will attend to."""
        k_BMHK = self.split_heads(self.key(memory_BMD))
        return KVCache(k_BMHK, self.split_heads(self.value(memory_BMD)))

    def recall(
        self,
        x_BLD: Float[Array, "B L D"],
        memory: KVCache,
        mask: Bool[Array, "#B #H #L #M"] | None = None,
    ) -> Float[Array, "B L D"]:
        """Attend from x to what `remember` kept."""
        q_BLHK = self.split_heads(self.query(x_BLD))
        out_BLHK, _ = attention(q_BLHK, memory.k_BMHK, memory.v_BMHK, mask)
        return self.out(out_BLHK.reshape(x_BLD.shape))

    def split_heads(self, x_BLD: Float[Array, "B L D"]) -> Float[Array, "B L H K"]:
        """View the width as H heads of K."""
        B, L, D = x_BLD.shape
        return x_BLD.reshape(B, L, self.num_heads, D // self.num_heads)
