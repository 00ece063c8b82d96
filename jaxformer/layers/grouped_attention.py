"""Grouped-query attention with rotary positions, the attention of today's decoders.

H heads of queries read G heads of keys and values, H / G each (Ainslie et al. 2023, section 2):
G = H is multi-head, G = 1 multi-query attention (Shazeer 2019). The head width K is free. Queries
and keys may be normalised (Henry et al. 2020) and are then rotated by their positions; caches hold
rotated keys.
"""

import math

from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from jaxformer.config import AttentionImplementation, DecoderConfig
from jaxformer.layers.attention import attend
from jaxformer.layers.cache import KVCache, write_cache
from jaxformer.layers.dropout import fold_path
from jaxformer.layers.linear import Linear
from jaxformer.layers.masks import Mask
from jaxformer.layers.norms import RMSNorm
from jaxformer.layers.rotary import Rotation, rotate


class GroupedQueryAttention(nnx.Module):
    """H heads of queries and G of keys and values, each of width K, rotated by their positions."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        D, H, G, K = config.width, config.num_heads, config.num_kv_heads, config.head_width
        bias, out_bias = config.attention_bias, config.attention_out_bias
        self.query = Linear((D, H * K), config, rngs, use_bias=bias)
        self.key = Linear((D, G * K), config, rngs, use_bias=bias)
        self.value = Linear((D, G * K), config, rngs, use_bias=bias)
        self.out = Linear((H * K, D), config, rngs, residual=True, use_bias=out_bias)
        self.query_norm = RMSNorm(K, config) if config.qk_norm else None
        self.key_norm = RMSNorm(K, config) if config.qk_norm else None
        self.head_width = K
        self.scale = config.attention_scale
        self.soft_cap = config.attention_soft_cap
        self.dropout_rate = config.dropout_rate if config.attention_dropout else 0.0
        self.implementation = config.attention

    def __call__(
        self,
        x_BLD: Float[Array, "B L D"],
        rotation: Rotation,
        mask: Mask | Bool[Array, "#B #H #L #M"] | None = None,
        dropout_key: Key[Array, ""] | None = None,
        cache: KVCache | None = None,
        positions: Int[Array, "#B L"] | None = None,
    ) -> tuple[Float[Array, "B L D"], KVCache | None]:
        """Attend from x to itself; returns the output and the cache.

        Args:
            x_BLD: a text or, with a cache, its next piece.
            rotation: of the positions of x.
            mask: True where a query may attend to a key; with a cache, keys are its slots.
            dropout_key: of this layer; None turns dropout off.
            cache: rotated keys, and values, of earlier tokens, to which those of x are added.
            positions: of x in the text, and its slots in the cache; unused without one.
        """
        q_BLHK, kv = self.project(x_BLD, rotation)
        if cache is not None:
            assert positions is not None, "a cache needs the positions of the new tokens"
            kv = cache = write_cache(cache, kv, positions)
        # Decoding has few queries and a dense mask over the slots.
        implementation = self.implementation if cache is None else "plain"
        return self.attend_to(q_BLHK, kv, mask, dropout_key, implementation)[0], cache

    def project(
        self, x_BLD: Float[Array, "B L D"], rotation: Rotation
    ) -> tuple[Float[Array, "B L H K"], KVCache]:
        """The rotated queries, and the rotated keys with the values."""
        q_BLHK = self.split_heads(self.query(x_BLD))
        k_BLGK, v_BLGK = map(self.split_heads, (self.key(x_BLD), self.value(x_BLD)))
        if self.query_norm is not None and self.key_norm is not None:
            q_BLHK, k_BLGK = self.query_norm(q_BLHK), self.key_norm(k_BLGK)
        q_BLHK, k_BLGK = rotate(q_BLHK, rotation), rotate(k_BLGK, rotation)
        if self.scale is not None:  # attention itself divides by sqrt(K)
            q_BLHK = q_BLHK * (self.scale * math.sqrt(self.head_width))
        return q_BLHK, KVCache(k_BLGK.swapaxes(1, 2), v_BLGK.swapaxes(1, 2))

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
            q_BLHK, kv, mask, implementation, self.dropout_rate, weights_key, self.soft_cap
        )
        return self.out(out_BLHK.reshape(*out_BLHK.shape[:2], -1)), weights_BHLM

    def split_heads(self, x: Float[Array, "B L HK"]) -> Float[Array, "B L H K"]:
        """View the outputs as heads of K."""
        return x.reshape(*x.shape[:2], -1, self.head_width)
