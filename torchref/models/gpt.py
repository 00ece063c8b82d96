"""GPT: a causal decoder-only Transformer, as GPT-2 (Radford et al. 2019, section 2.3).

Token plus learned position embeddings, N blocks (pre-norm by default), a final norm, and logits by
the token embedding itself. Weights start as N(0, init_std²), 0.02 in GPT-2; projections into the
residual stream are scaled by a further 1 / sqrt(2N). Dropout follows the embeddings, the attention
weights and each sub-layer.
"""

import torch
from torch import Tensor, nn

from torchref.config import GPTConfig
from torchref.layers.blocks import EncoderBlock
from torchref.layers.dropout import Keep, dropout, fold_path
from torchref.layers.linear import init_linears
from torchref.layers.masks import combine_masks, position_mask
from torchref.layers.norms import LayerNorm
from torchref.layers.positions import LearnedPositions


class GPT(nn.Module):
    """Tokens (B, L) to logits (B, L, V) of the token that follows each; L <= context_length."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.embed = nn.Embedding(config.vocab_size, config.width)
        self.positions = LearnedPositions(config.context_length, config)
        self.blocks = nn.ModuleList([EncoderBlock(config) for _ in range(config.num_layers)])
        self.norm = LayerNorm(config)
        self.dropout_rate = config.dropout_rate
        self.init_weights(config)

    def init_weights(self, config: GPTConfig) -> None:
        """N(0, init_std²) for weights, zeros for biases, smaller into the residual stream."""
        nn.init.normal_(self.embed.weight, std=config.init_std)
        init_linears(self.blocks, config)

    def forward(
        self, tokens_BL: Tensor, mask: Tensor | None = None, keep: Keep | None = None
    ) -> Tensor:
        """Logits of a whole text; `mask` (padding, segments) narrows the causal one."""
        positions = torch.arange(tokens_BL.shape[1])[None]
        mask = combine_masks(position_mask(positions, positions), mask)
        x_BLD = self.embed(tokens_BL) + self.positions(positions)
        x_BLD = dropout(x_BLD, self.dropout_rate, fold_path(keep, "embedding_dropout"))
        for i, block in enumerate(self.blocks):
            x_BLD = block(x_BLD, mask, fold_path(keep, "blocks", i))
        return self.logits(self.norm(x_BLD))

    def logits(self, hidden_BLD: Tensor) -> Tensor:
        """Hidden states times the token embedding (Press & Wolf 2017)."""
        return hidden_BLD @ self.embed.weight.T
