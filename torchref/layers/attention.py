"""Scaled dot-product and multi-head attention (Vaswani et al. 2017, sections 3.2.1 and 3.2.2)."""

import math

import torch
from torch import Tensor, nn

from torchref.config import BlockConfig
from torchref.layers.dropout import Keep, dropout, fold_path
from torchref.layers.soft_cap import soft_cap


def attention(
    q_BLHK: Tensor,
    k_BMGK: Tensor,
    v_BMGK: Tensor,
    mask: Tensor | None = None,
    dropout_rate: float = 0.0,
    keep: Keep | None = None,
    cap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """softmax(q k^T / sqrt(K)) v, and the weights before dropout; heads 0 to H / G - 1 read key
    head 0, and so on.

    A query that may attend to nothing has weights and output 0.
    """
    group = q_BLHK.shape[2] // k_BMGK.shape[2]
    k_BMHK, v_BMHK = (x.repeat_interleave(group, dim=2) for x in (k_BMGK, v_BMGK))
    wide = torch.promote_types(q_BLHK.dtype, torch.float32)
    scores = torch.einsum("blhk,bmhk->bhlm", q_BLHK, k_BMHK).to(wide)
    scores = soft_cap(scores / math.sqrt(q_BLHK.shape[-1]), cap)
    if mask is None:
        weights = torch.softmax(scores, dim=-1)
    else:
        scores = torch.where(mask, scores, torch.finfo(wide).min)
        weights = torch.where(mask, torch.softmax(scores, dim=-1), 0.0)
    weights = weights.to(v_BMHK.dtype)
    dropped = dropout(weights, dropout_rate, keep)
    return torch.einsum("bhlm,bmhk->blhk", dropped, v_BMHK), weights


class MultiHeadAttention(nn.Module):
    """H heads of `attention` on projections of width K = D / H, concatenated and projected."""

    def __init__(self, config: BlockConfig):
        super().__init__()
        D = config.width
        self.query = nn.Linear(D, D, bias=config.use_bias)
        self.key = nn.Linear(D, D, bias=config.use_bias)
        self.value = nn.Linear(D, D, bias=config.use_bias)
        self.out = nn.Linear(D, D, bias=config.use_bias)
        self.num_heads = config.num_heads
        self.dropout_rate = config.dropout_rate if config.attention_dropout else 0.0

    def forward(
        self,
        x_BLD: Tensor,
        memory_BMD: Tensor | None = None,
        mask: Tensor | None = None,
        keep: Keep | None = None,
    ) -> Tensor:
        """Attend from x to the memory, by default x itself."""
        q_BLHK = self.split_heads(self.query(x_BLD))
        kv = self.project_kv(x_BLD if memory_BMD is None else memory_BMD)
        return self.attend_to(q_BLHK, kv, mask, keep)[0]

    def project_kv(self, memory_BMD: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of the memory."""
        return self.split_heads(self.key(memory_BMD)), self.split_heads(self.value(memory_BMD))

    def attend_to(
        self,
        q_BLHK: Tensor,
        kv: tuple[Tensor, Tensor],
        mask: Tensor | None = None,
        keep: Keep | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The projected output of all heads, and each head's weights before dropout."""
        keep = fold_path(keep, "weights")
        out_BLHK, weights_BHLM = attention(q_BLHK, *kv, mask, self.dropout_rate, keep)
        return self.out(out_BLHK.reshape(*out_BLHK.shape[:2], -1)), weights_BHLM

    def split_heads(self, x_BLD: Tensor) -> Tensor:
        """View the width as H heads of K: (B, L, H, K)."""
        B, L, D = x_BLD.shape
        return x_BLD.reshape(B, L, self.num_heads, D // self.num_heads)
