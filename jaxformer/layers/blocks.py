"""Transformer blocks: sub-layers with residual connections, normalised before or after.

pre:   x + dropout(sublayer(norm(x)))      GPT-2 (Radford et al. 2019, section 2.3)
post:  norm(x + dropout(sublayer(x)))      Vaswani et al. 2017, sections 3.1 and 5.4
both:  x + dropout(norm(sublayer(norm(x))))      Gemma 2 (2024, section 2), in `CausalBlock`
"""

import functools
from collections.abc import Callable
from typing import Any

from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from jaxformer.config import BlockConfig, DecoderConfig
from jaxformer.layers.attention import MultiHeadAttention
from jaxformer.layers.cache import DecoderCache, KVCache
from jaxformer.layers.dropout import dropout, fold_path
from jaxformer.layers.grouped_attention import GroupedQueryAttention
from jaxformer.layers.masks import Mask
from jaxformer.layers.mlp import MLP, GatedMLP
from jaxformer.layers.norms import LayerNorm, RMSNorm
from jaxformer.layers.rotary import Rotation


class Block(nnx.Module):
    """What the blocks share: how a sub-layer is added to the residual stream."""

    def __init__(self, config: BlockConfig):
        self.norm_placement = config.norm_placement
        self.dropout_rate = config.dropout_rate

    def residual(
        self,
        x_BLD: Float[Array, "B L D"],
        norm: LayerNorm,
        dropout_key: Key[Array, ""] | None,
        sublayer: Callable[[Array], tuple[Array, Any]],
    ) -> tuple[Float[Array, "B L D"], Any]:
        """x + dropout(sublayer(norm(x))) or norm(x + dropout(sublayer(x))), and the cache."""
        pre = self.norm_placement == "pre"
        y_BLD, cache = sublayer(norm(x_BLD) if pre else x_BLD)
        x_BLD = x_BLD + dropout(y_BLD, self.dropout_rate, dropout_key)
        return x_BLD if pre else norm(x_BLD), cache


class EncoderBlock(Block):
    """Self-attention, then feed-forward: the encoder's block; with a causal mask, GPT's."""

    def __init__(self, config: BlockConfig, rngs: nnx.Rngs):
        super().__init__(config)
        self.attention_norm = LayerNorm(config)
        self.attention = MultiHeadAttention(config, rngs)
        self.mlp_norm = LayerNorm(config)
        self.mlp = MLP(config, rngs)

    def __call__(
        self,
        x_BLD: Float[Array, "B L D"],
        mask: Mask | Bool[Array, "#B #H #L #M"] | None = None,
        dropout_key: Key[Array, ""] | None = None,
        cache: KVCache | None = None,
        positions: Int[Array, "#B L"] | None = None,
    ) -> tuple[Float[Array, "B L D"], KVCache | None]:
        """The output, and the cache with the tokens added at their positions."""
        key = functools.partial(fold_path, dropout_key)
        x_BLD, cache = self.residual(
            x_BLD,
            self.attention_norm,
            key("attention_dropout"),
            lambda h: self.attention(h, None, mask, key("attention"), cache, positions),
        )
        x_BLD, _ = self.residual(
            x_BLD, self.mlp_norm, key("mlp_dropout"), lambda h: (self.mlp(h), None)
        )
        return x_BLD, cache


class DecoderBlock(Block):
    """Causal self-attention, attention to the encoder's output, then feed-forward."""

    def __init__(self, config: BlockConfig, rngs: nnx.Rngs):
        super().__init__(config)
        self.self_attention_norm = LayerNorm(config)
        self.self_attention = MultiHeadAttention(config, rngs)
        self.cross_attention_norm = LayerNorm(config)
        self.cross_attention = MultiHeadAttention(config, rngs)
        self.mlp_norm = LayerNorm(config)
        self.mlp = MLP(config, rngs)

    def __call__(
        self,
        x_BLD: Float[Array, "B L D"],
        memory_BMD: Float[Array, "B M D"] | None,
        mask: Mask | Bool[Array, "#B #H #L #S"] | None = None,
        memory_mask: Mask | Bool[Array, "#B #H #L #M"] | None = None,
        dropout_key: Key[Array, ""] | None = None,
        cache: DecoderCache | None = None,
        positions: Int[Array, "#B L"] | None = None,
    ) -> tuple[Float[Array, "B L D"], DecoderCache | None]:
        """`mask` is over the tokens themselves, `memory_mask` over the encoder's output.

        With a cache, the encoder's output is read from there, and `memory_BMD` is not used.
        """
        key = functools.partial(fold_path, dropout_key)
        own, memory = (None, memory_BMD) if cache is None else cache
        assert memory is not None, "a decoder block needs the encoder's output or a cache"
        x_BLD, own = self.residual(
            x_BLD,
            self.self_attention_norm,
            key("self_attention_dropout"),
            lambda h: self.self_attention(h, None, mask, key("self_attention"), own, positions),
        )
        x_BLD, _ = self.residual(
            x_BLD,
            self.cross_attention_norm,
            key("cross_attention_dropout"),
            lambda h: self.cross_attention(h, memory, memory_mask, key("cross_attention")),
        )
        x_BLD, _ = self.residual(
            x_BLD, self.mlp_norm, key("mlp_dropout"), lambda h: (self.mlp(h), None)
        )
        return x_BLD, None if cache is None else DecoderCache(own, cache.memory)


class CausalBlock(nnx.Module):
    """Grouped-query attention, then a gated MLP, each behind an RMSNorm: the block of `Decoder`.

    With `post_norms` the output of each has a norm too.
    """

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        D, post = config.width, config.post_norms
        self.attention_norm = RMSNorm(D, config)
        self.attention = GroupedQueryAttention(config, rngs)
        self.attention_post_norm = RMSNorm(D, config) if post else None
        self.mlp_norm = RMSNorm(D, config)
        self.mlp = GatedMLP(config, rngs)
        self.mlp_post_norm = RMSNorm(D, config) if post else None
        self.dropout_rate = config.dropout_rate

    def __call__(
        self,
        x_BLD: Float[Array, "B L D"],
        rotation: Rotation,
        mask: Mask | Bool[Array, "#B #H #L #M"] | None = None,
        dropout_key: Key[Array, ""] | None = None,
        cache: KVCache | None = None,
        positions: Int[Array, "#B L"] | None = None,
    ) -> tuple[Float[Array, "B L D"], KVCache | None]:
        """The output, and the cache with the tokens added at their positions."""
        key = functools.partial(fold_path, dropout_key)
        h_BLD = self.attention_norm(x_BLD)
        y_BLD, cache = self.attention(h_BLD, rotation, mask, key("attention"), cache, positions)
        x_BLD = self.add(x_BLD, y_BLD, self.attention_post_norm, key("attention_dropout"))
        y_BLD = self.mlp(self.mlp_norm(x_BLD))
        return self.add(x_BLD, y_BLD, self.mlp_post_norm, key("mlp_dropout")), cache

    def add(
        self,
        x_BLD: Float[Array, "B L D"],
        y_BLD: Float[Array, "B L D"],
        norm: RMSNorm | None,
        dropout_key: Key[Array, ""] | None,
    ) -> Float[Array, "B L D"]:
        """x + dropout(y) or x + dropout(norm(y))."""
        y_BLD = y_BLD if norm is None else norm(y_BLD)
        return x_BLD + dropout(y_BLD, self.dropout_rate, dropout_key)
