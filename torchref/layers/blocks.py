"""Transformer blocks: sub-layers with residual connections, normalised before or after.

pre:   x + dropout(sublayer(norm(x)))      GPT-2 (Radford et al. 2019, section 2.3)
post:  norm(x + dropout(sublayer(x)))      Vaswani et al. 2017, sections 3.1 and 5.4
"""

from collections.abc import Callable

from torch import Tensor, nn

from torchref.config import BlockConfig
from torchref.layers.attention import MultiHeadAttention
from torchref.layers.dropout import Keep, dropout, fold_path
from torchref.layers.mlp import MLP
from torchref.layers.norms import LayerNorm

Norm = Callable[[Tensor], Tensor]


def around(norm: Norm, placement: str) -> tuple[Norm, Norm]:
    """What to apply before a sub-layer and after its residual sum: one is the norm."""
    return (norm, identity) if placement == "pre" else (identity, norm)


def identity(x: Tensor) -> Tensor:
    """x."""
    return x


class EncoderBlock(nn.Module):
    """Self-attention, then feed-forward: the encoder's block; with a causal mask, GPT's."""

    def __init__(self, config: BlockConfig):
        super().__init__()
        self.attention_norm = LayerNorm(config)
        self.attention = MultiHeadAttention(config)
        self.mlp_norm = LayerNorm(config)
        self.mlp = MLP(config)
        self.norm_placement = config.norm_placement
        self.dropout_rate = config.dropout_rate

    def forward(
        self, x_BLD: Tensor, mask: Tensor | None = None, keep: Keep | None = None
    ) -> Tensor:
        before, after = around(self.attention_norm, self.norm_placement)
        y_BLD = self.attention(before(x_BLD), mask=mask, keep=fold_path(keep, "attention"))
        y_BLD = dropout(y_BLD, self.dropout_rate, fold_path(keep, "attention_dropout"))
        x_BLD = after(x_BLD + y_BLD)

        before, after = around(self.mlp_norm, self.norm_placement)
        y_BLD = self.mlp(before(x_BLD))
        y_BLD = dropout(y_BLD, self.dropout_rate, fold_path(keep, "mlp_dropout"))
        return after(x_BLD + y_BLD)


class DecoderBlock(nn.Module):
    """Causal self-attention, attention to the encoder's output, then feed-forward."""

    def __init__(self, config: BlockConfig):
        super().__init__()
        self.self_attention_norm = LayerNorm(config)
        self.self_attention = MultiHeadAttention(config)
        self.cross_attention_norm = LayerNorm(config)
        self.cross_attention = MultiHeadAttention(config)
        self.mlp_norm = LayerNorm(config)
        self.mlp = MLP(config)
        self.norm_placement = config.norm_placement
        self.dropout_rate = config.dropout_rate

    def forward(
        self,
        x_BLD: Tensor,
        memory_BMD: Tensor,
        mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        keep: Keep | None = None,
    ) -> Tensor:
        """`mask` is over the tokens themselves, `memory_mask` over the encoder's output."""
        before, after = around(self.self_attention_norm, self.norm_placement)
        y_BLD = self.self_attention(
            before(x_BLD), mask=mask, keep=fold_path(keep, "self_attention")
        )
        y_BLD = dropout(y_BLD, self.dropout_rate, fold_path(keep, "self_attention_dropout"))
        x_BLD = after(x_BLD + y_BLD)

        before, after = around(self.cross_attention_norm, self.norm_placement)
        cross_keep = fold_path(keep, "cross_attention")
        y_BLD = self.cross_attention(before(x_BLD), memory_BMD, memory_mask, cross_keep)
        y_BLD = dropout(y_BLD, self.dropout_rate, fold_path(keep, "cross_attention_dropout"))
        x_BLD = after(x_BLD + y_BLD)

        before, after = around(self.mlp_norm, self.norm_placement)
        y_BLD = self.mlp(before(x_BLD))
        y_BLD = dropout(y_BLD, self.dropout_rate, fold_path(keep, "mlp_dropout"))
        return after(x_BLD + y_BLD)
