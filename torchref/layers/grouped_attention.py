"""Grouped-query attention with rotary positions, the attention of today's decoders.

H heads of queries read G heads of keys and values, H / G each (Ainslie et al. 2023, section 2). The
head width K is free. Queries and keys may be normalised (Henry et al. 2020) and are then rotated by
their positions.
"""

import math

from torch import Tensor, nn

from torchref.config import DecoderConfig
from torchref.layers.attention import attention
from torchref.layers.dropout import Keep, fold_path
from torchref.layers.norms import RMSNorm
from torchref.layers.rotary import Rotation, rotate


class GroupedQueryAttention(nn.Module):
    """H heads of queries and G of keys and values, each of width K, rotated by their positions."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        D, H, G, K = config.width, config.num_heads, config.num_kv_heads, config.head_width
        self.query = nn.Linear(D, H * K, bias=config.attention_bias)
        self.key = nn.Linear(D, G * K, bias=config.attention_bias)
        self.value = nn.Linear(D, G * K, bias=config.attention_bias)
        self.out = nn.Linear(H * K, D, bias=config.attention_out_bias)
        self.query_norm = RMSNorm(K, config) if config.qk_norm else None
        self.key_norm = RMSNorm(K, config) if config.qk_norm else None
        self.head_width = K
        self.scale = config.attention_scale
        self.soft_cap = config.attention_soft_cap
        self.dropout_rate = config.dropout_rate if config.attention_dropout else 0.0

    def forward(
        self,
        x_BLD: Tensor,
        rotation: Rotation,
        mask: Tensor | None = None,
        keep: Keep | None = None,
    ) -> Tensor:
        """Attend from x to itself."""
        q_BLHK, kv = self.project(x_BLD, rotation)
        return self.attend_to(q_BLHK, kv, mask, keep)[0]

    def project(self, x_BLD: Tensor, rotation: Rotation) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """The rotated queries, and the rotated keys with the values."""
        q_BLHK, k_BLGK = self.split_heads(self.query(x_BLD)), self.split_heads(self.key(x_BLD))
        if self.query_norm is not None and self.key_norm is not None:
            q_BLHK, k_BLGK = self.query_norm(q_BLHK), self.key_norm(k_BLGK)
        q_BLHK, k_BLGK = rotate(q_BLHK, rotation), rotate(k_BLGK, rotation)
        if self.scale is not None:  # attention itself divides by sqrt(K)
            q_BLHK = q_BLHK * (self.scale * math.sqrt(self.head_width))
        return q_BLHK, (k_BLGK, self.split_heads(self.value(x_BLD)))

    def attend_to(
        self,
        q_BLHK: Tensor,
        kv: tuple[Tensor, Tensor],
        mask: Tensor | None = None,
        keep: Keep | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The projected output of all heads, and each head's weights before dropout."""
        keep = fold_path(keep, "weights")
        out_BLHK, weights_BHLM = attention(
            q_BLHK, *kv, mask, self.dropout_rate, keep, self.soft_cap
        )
        return self.out(out_BLHK.reshape(*out_BLHK.shape[:2], -1)), weights_BHLM

    def split_heads(self, x: Tensor) -> Tensor:
        """View the outputs as heads of K."""
        return x.reshape(*x.shape[:2], -1, self.head_width)
