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
from jaxformer.layers.masks import require_boolean


def attention(
    q_BLHK: Float[Array, "B L H K"],
    k_BMHK: Float[Array, "B M H K"],
    v_BMHK: Float[Array, "B M H K"],
    mask: Bool[Array, "#B #H #L #M"] | None = None,
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
    if mask is None:
        weights = jax.nn.softmax(scores, axis=-1)
    else:
        require_boolean(mask)
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
        memory: Float[Array, "B M D"] | KVCache | None = None,
        mask: Bool[Array, "#B #H #L #M"] | None = None,
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
        return self.attend_to(q_BLHK, kv, mask, dropout_key)[0], cache

    def project_kv(self, memory_BMD: Float[Array, "B M D"]) -> KVCache:
        """Keys and values of the memory."""
        k_BMHK = self.split_heads(self.key(memory_BMD))
        return KVCache(k_BMHK, self.split_heads(self.value(memory_BMD)))

    def attend_to(
        self,
        q_BLHK: Float[Array, "B L H K"],
        kv: KVCache,
        mask: Bool[Array, "#B #H #L #M"] | None = None,
        dropout_key: Key[Array, ""] | None = None,
    ) -> tuple[Float[Array, "B L D"], Float[Array, "B H L M"]]:
        """The projected output of all heads, and each head's weights before dropout."""
        weights_key = fold_path(dropout_key, "weights")
        out_BLHK, weights_BHLM = attention(q_BLHK, *kv, mask, self.dropout_rate, weights_key)
        return self.out(out_BLHK.reshape(*out_BLHK.shape[:2], -1)), weights_BHLM

    def split_heads(self, x_BLD: Float[Array, "B L D"]) -> Float[Array, "B L H K"]:
        """View the width as H heads of K."""
        B, L, D = x_BLD.shape
        return x_BLD.reshape(B, L, self.num_heads, D // self.num_heads)
