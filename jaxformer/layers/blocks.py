"""Transformer blocks: sub-layers with residual connections, normalised before or after.

pre:   x + dropout(sublayer(norm(x)))      GPT-2 (Radford et al. 2019, section 2.3)
post:  norm(x + dropout(sublayer(x)))      Vaswani et al. 2017, sections 3.1 and 5.4
"""

from collections.abc import Callable
from typing import NamedTuple

from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from jaxformer.config import BlockConfig, NormPlacement
from jaxformer.layers.attention import MultiHeadAttention
from jaxformer.layers.cache import KVCache
from jaxformer.layers.dropout import dropout, fold_path
from jaxformer.layers.mlp import MLP
from jaxformer.layers.norms import LayerNorm

Norm = Callable[[Array], Array]


def around(norm: Norm, placement: NormPlacement) -> tuple[Norm, Norm]:
    """What to apply before a sub-layer and after its residual sum: one is the norm."""
    return (norm, identity) if placement == "pre" else (identity, norm)


def identity(x: Array) -> Array:
    """x."""
    return x


class EncoderBlock(nnx.Module):
    """Self-attention, then feed-forward: the encoder's block; with a causal mask, GPT's."""

    def __init__(self, config: BlockConfig, rngs: nnx.Rngs):
        self.attention_norm = LayerNorm(config)
        self.attention = MultiHeadAttention(config, rngs)
        self.mlp_norm = LayerNorm(config)
        self.mlp = MLP(config, rngs)
        self.norm_placement = config.norm_placement
        self.dropout_rate = config.dropout_rate

    def __call__(
        self,
        x_BLD: Float[Array, "B L D"],
        mask: Bool[Array, "#B #H #L #L"] | None = None,
        dropout_key: Key[Array, ""] | None = None,
    ) -> Float[Array, "B L D"]:
        before, after = around(self.attention_norm, self.norm_placement)
        y_BLD = self.attention(
            before(x_BLD), mask=mask, dropout_key=fold_path(dropout_key, "attention")
        )
        y_BLD = dropout(y_BLD, self.dropout_rate, fold_path(dropout_key, "attention_dropout"))
        x_BLD = after(x_BLD + y_BLD)

        before, after = around(self.mlp_norm, self.norm_placement)
        y_BLD = self.mlp(before(x_BLD))
        y_BLD = dropout(y_BLD, self.dropout_rate, fold_path(dropout_key, "mlp_dropout"))
        return after(x_BLD + y_BLD)

    def decode(
        self, x_BLD: Float[Array, "B L D"], positions: Int[Array, "B L"], cache: KVCache
    ) -> tuple[Float[Array, "B L D"], KVCache]:
        """The block on new tokens at their positions, the earlier ones read from the cache."""
        before, after = around(self.attention_norm, self.norm_placement)
        y_BLD, cache = self.attention.decode(before(x_BLD), positions, cache)
        x_BLD = after(x_BLD + y_BLD)

        before, after = around(self.mlp_norm, self.norm_placement)
        return after(x_BLD + self.mlp(before(x_BLD))), cache


class DecoderCache(NamedTuple):
    """What a decoder block keeps while it decodes."""

    own: KVCache
    """Keys and values of the tokens so far."""
    memory: KVCache
    """Those of the encoder's output; they do not change."""


class DecoderBlock(nnx.Module):
    """Causal self-attention, attention to the encoder's output, then feed-forward."""

    def __init__(self, config: BlockConfig, rngs: nnx.Rngs):
        self.self_attention_norm = LayerNorm(config)
        self.self_attention = MultiHeadAttention(config, rngs)
        self.cross_attention_norm = LayerNorm(config)
        self.cross_attention = MultiHeadAttention(config, rngs)
        self.mlp_norm = LayerNorm(config)
        self.mlp = MLP(config, rngs)
        self.norm_placement = config.norm_placement
        self.dropout_rate = config.dropout_rate

    def __call__(
        self,
        x_BLD: Float[Array, "B L D"],
        memory_BMD: Float[Array, "B M D"],
        mask: Bool[Array, "#B #H #L #L"] | None = None,
        memory_mask: Bool[Array, "#B #H #L #M"] | None = None,
        dropout_key: Key[Array, ""] | None = None,
    ) -> Float[Array, "B L D"]:
        """`mask` is over the tokens themselves, `memory_mask` over the encoder's output."""
        before, after = around(self.self_attention_norm, self.norm_placement)
        y_BLD = self.self_attention(
            before(x_BLD), mask=mask, dropout_key=fold_path(dropout_key, "self_attention")
        )
        y_BLD = dropout(y_BLD, self.dropout_rate, fold_path(dropout_key, "self_attention_dropout"))
        x_BLD = after(x_BLD + y_BLD)

        before, after = around(self.cross_attention_norm, self.norm_placement)
        cross_key = fold_path(dropout_key, "cross_attention")
        y_BLD = self.cross_attention(before(x_BLD), memory_BMD, memory_mask, cross_key)
        y_BLD = dropout(y_BLD, self.dropout_rate, fold_path(dropout_key, "cross_attention_dropout"))
        x_BLD = after(x_BLD + y_BLD)

        before, after = around(self.mlp_norm, self.norm_placement)
        y_BLD = self.mlp(before(x_BLD))
        y_BLD = dropout(y_BLD, self.dropout_rate, fold_path(dropout_key, "mlp_dropout"))
        return after(x_BLD + y_BLD)

    def decode(
        self,
        x_BLD: Float[Array, "B L D"],
        positions: Int[Array, "B L"],
        memory_mask: Bool[Array, "#B #H #L #M"] | None,
        cache: DecoderCache,
    ) -> tuple[Float[Array, "B L D"], DecoderCache]:
        """The block on new tokens at their positions, the earlier ones read from the cache."""
        before, after = around(self.self_attention_norm, self.norm_placement)
        y_BLD, own = self.self_attention.decode(before(x_BLD), positions, cache.own)
        x_BLD = after(x_BLD + y_BLD)

        before, after = around(self.cross_attention_norm, self.norm_placement)
        y_BLD = self.cross_attention.recall(before(x_BLD), cache.memory, memory_mask)
        x_BLD = after(x_BLD + y_BLD)

        before, after = around(self.mlp_norm, self.norm_placement)
        return after(x_BLD + self.mlp(before(x_BLD))), cache._replace(own=own)
