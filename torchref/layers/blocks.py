"""Transformer blocks: sub-layers with residual connections, normalised before or after.

pre:   x + dropout(sublayer(norm(x)))      GPT-2 (Radford et al. 2019, section 2.3)
post:  norm(x + dropout(sublayer(x)))      Vaswani et al. 2017, sections 3.1 and 5.4
both:  x + dropout(norm(sublayer(norm(x))))      Gemma 2 (2024, section 2), in `CausalBlock`
"""

import functools
from collections.abc import Callable

from torch import Tensor, nn

from torchref.config import BlockConfig, DecoderConfig
from torchref.layers.attention import MultiHeadAttention
from torchref.layers.dropout import Keep, dropout, fold_path
from torchref.layers.grouped_attention import GroupedQueryAttention
from torchref.layers.mlp import MLP, GatedMLP
from torchref.layers.norms import LayerNorm, RMSNorm
from torchref.layers.rotary import Rotation


class Block(nn.Module):
    """What the blocks share: how a sub-layer is added to the residual stream."""

    def __init__(self, config: BlockConfig):
        super().__init__()
        self.norm_placement = config.norm_placement
        self.dropout_rate = config.dropout_rate

    def residual(
        self,
        x_BLD: Tensor,
        norm: LayerNorm,
        keep: Keep | None,
        sublayer: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """x + dropout(sublayer(norm(x))) or norm(x + dropout(sublayer(x)))."""
        pre = self.norm_placement == "pre"
        y_BLD = sublayer(norm(x_BLD) if pre else x_BLD)
        x_BLD = x_BLD + dropout(y_BLD, self.dropout_rate, keep)
        return x_BLD if pre else norm(x_BLD)


class EncoderBlock(Block):
    """Self-attention, then feed-forward: the encoder's block; with a causal mask, GPT's."""

    def __init__(self, config: BlockConfig):
        super().__init__(config)
        self.attention_norm = LayerNorm(config)
        self.attention = MultiHeadAttention(config)
        self.mlp_norm = LayerNorm(config)
        self.mlp = MLP(config)

    def forward(
        self, x_BLD: Tensor, mask: Tensor | None = None, keep: Keep | None = None
    ) -> Tensor:
        key = functools.partial(fold_path, keep)
        x_BLD = self.residual(
            x_BLD,
            self.attention_norm,
            key("attention_dropout"),
            lambda h: self.attention(h, None, mask, key("attention")),
        )
        return self.residual(x_BLD, self.mlp_norm, key("mlp_dropout"), self.mlp)


class DecoderBlock(Block):
    """Causal self-attention, attention to the encoder's output, then feed-forward."""

    def __init__(self, config: BlockConfig):
        super().__init__(config)
        self.self_attention_norm = LayerNorm(config)
        self.self_attention = MultiHeadAttention(config)
        self.cross_attention_norm = LayerNorm(config)
        self.cross_attention = MultiHeadAttention(config)
        self.mlp_norm = LayerNorm(config)
        self.mlp = MLP(config)

    def forward(
        self,
        x_BLD: Tensor,
        memory_BMD: Tensor,
        mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        keep: Keep | None = None,
    ) -> Tensor:
        """`mask` is over the tokens themselves, `memory_mask` over the encoder's output."""
        key = functools.partial(fold_path, keep)
        x_BLD = self.residual(
            x_BLD,
            self.self_attention_norm,
            key("self_attention_dropout"),
            lambda h: self.self_attention(h, None, mask, key("self_attention")),
        )
        x_BLD = self.residual(
            x_BLD,
            self.cross_attention_norm,
            key("cross_attention_dropout"),
            lambda h: self.cross_attention(h, memory_BMD, memory_mask, key("cross_attention")),
        )
        return self.residual(x_BLD, self.mlp_norm, key("mlp_dropout"), self.mlp)


class CausalBlock(nn.Module):
    """Grouped-query attention, then a gated MLP, each behind an RMSNorm: the block of `Decoder`."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        D, post = config.width, config.post_norms
        self.attention_norm = RMSNorm(D, config)
        self.attention = GroupedQueryAttention(config)
        self.attention_post_norm = RMSNorm(D, config) if post else None
        self.mlp_norm = RMSNorm(D, config)
        self.mlp = GatedMLP(config)
        self.mlp_post_norm = RMSNorm(D, config) if post else None
        self.dropout_rate = config.dropout_rate

    def forward(
        self,
        x_BLD: Tensor,
        rotation: Rotation,
        mask: Tensor | None = None,
        keep: Keep | None = None,
    ) -> Tensor:
        key = functools.partial(fold_path, keep)
        y_BLD = self.attention(self.attention_norm(x_BLD), rotation, mask, key("attention"))
        x_BLD = self.add(x_BLD, y_BLD, self.attention_post_norm, key("attention_dropout"))
        y_BLD = self.mlp(self.mlp_norm(x_BLD))
        return self.add(x_BLD, y_BLD, self.mlp_post_norm, key("mlp_dropout"))

    def add(self, x_BLD: Tensor, y_BLD: Tensor, norm: RMSNorm | None, keep: Keep | None) -> Tensor:
        """x + dropout(y) or x + dropout(norm(y))."""
        y_BLD = y_BLD if norm is None else norm(y_BLD)
        return x_BLD + dropout(y_BLD, self.dropout_rate, keep)
