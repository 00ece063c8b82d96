"""The decoder-only Transformer of today, composed by its config: Llama, Mistral, Qwen, Gemma.

Token embeddings, N blocks of grouped-query attention with rotary positions and a gated MLP, each
behind an RMSNorm (Touvron et al. 2023, section 2.2), a final RMSNorm, and logits by the token
embedding or by an output head of its own. Weights start as GPT's, dropout follows at the same
places.
"""

import math

import torch
from torch import Tensor, nn

from torchref.config import DecoderConfig
from torchref.layers.blocks import CausalBlock
from torchref.layers.dropout import Keep, dropout, fold_path
from torchref.layers.linear import init_linears
from torchref.layers.masks import combine_masks, position_mask, window_mask
from torchref.layers.norms import RMSNorm
from torchref.layers.rotary import rotation
from torchref.layers.soft_cap import soft_cap


class Decoder(nn.Module):
    """Tokens (B, L) to logits (B, L, V) of the token that follows each; L <= context_length."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.embed = nn.Embedding(config.vocab_size, config.width)
        self.blocks = nn.ModuleList([CausalBlock(config) for _ in range(config.num_layers)])
        self.norm = RMSNorm(config.width, config)
        if not config.tie_embeddings:
            self.output = nn.Linear(config.width, config.vocab_size, bias=False)
        self.config = config
        self.init_weights(config)

    def init_weights(self, config: DecoderConfig) -> None:
        """N(0, init_std²) for weights, zeros for biases, smaller into the residual stream."""
        nn.init.normal_(self.embed.weight, std=config.init_std)
        init_linears(self, config)

    def forward(
        self, tokens_BL: Tensor, mask: Tensor | None = None, keep: Keep | None = None
    ) -> Tensor:
        """Logits of a whole text; `mask` (padding, segments) narrows the causal one."""
        positions = torch.arange(tokens_BL.shape[1])[None]
        mask = combine_masks(self.seen(positions), mask)
        x_BLD = self.embed_tokens(tokens_BL, fold_path(keep, "embedding_dropout"))
        turns = rotation(positions, self.config)
        for i, block in enumerate(self.blocks):
            x_BLD = block(x_BLD, turns, mask, fold_path(keep, "blocks", i))
        return self.logits(self.norm(x_BLD))

    def seen(self, positions: Tensor) -> Tensor:
        """The causal mask, narrowed by the sliding window if there is one."""
        window, causal = self.config.sliding_window, position_mask(positions, positions)
        return causal if window is None else causal & window_mask(positions, positions, window)

    def embed_tokens(self, tokens_BL: Tensor, keep: Keep | None = None) -> Tensor:
        """dropout(W[token]), or of sqrt(D) W[token]."""
        x_BLD = self.embed(tokens_BL)
        if self.config.scale_embeddings:
            x_BLD = math.sqrt(self.config.width) * x_BLD
        return dropout(x_BLD, self.config.dropout_rate, keep)

    def logits(self, hidden_BLD: Tensor) -> Tensor:
        """Hidden states times the token embedding or the output head, under the final soft cap."""
        tied = self.config.tie_embeddings
        logits = hidden_BLD @ self.embed.weight.T if tied else self.output(hidden_BLD)
        return soft_cap(logits, self.config.final_soft_cap)
