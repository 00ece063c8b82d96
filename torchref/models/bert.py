"""BERT: an encoder with its masked-language-model head (Devlin et al. 2019, sections 3 and A.2).

The sum of token, position and segment embeddings (figure 2) is normalised, then dropped, and N
post-norm blocks see the whole text, both ways. The head maps each final state by a dense layer, the
blocks' activation (published: the exact GELU) and a norm, and multiplies it by the token embedding
itself, plus a bias for each token.
What the paper leaves open is as in its published code, https://github.com/google-research/bert.
"""

import torch
from torch import Tensor, nn

from torchref.config import BertConfig
from torchref.layers.dropout import Keep, dropout, fold_path
from torchref.layers.linear import init_linears
from torchref.layers.masks import padding_mask
from torchref.layers.mlp import ACTIVATIONS
from torchref.layers.norms import LayerNorm
from torchref.layers.positions import LearnedPositions
from torchref.layers.stacks import Encoder


class MaskedLanguageHead(nn.Module):
    """h -> LayerNorm(activation(h W + b)), and the bias of each token's logit."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.dense = nn.Linear(config.width, config.width, bias=config.use_bias)
        self.norm = LayerNorm(config)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))
        self.activation = config.activation

    def forward(self, hidden_BLD: Tensor) -> Tensor:
        return self.norm(ACTIVATIONS[self.activation](self.dense(hidden_BLD)))


class Bert(nn.Module):
    """Tokens (B, L) to logits (B, L, V) of the token at each position."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.embed = nn.Embedding(config.vocab_size, config.width)
        self.positions = LearnedPositions(config.context_length, config)
        self.segments = nn.Embedding(config.num_segments, config.width)
        self.embedding_norm = LayerNorm(config)
        self.encoder = Encoder(config)
        self.head = MaskedLanguageHead(config)
        self.dropout_rate = config.dropout_rate
        for table in (self.embed, self.segments):
            nn.init.normal_(table.weight, std=config.init_std)
        init_linears(self, config)

    def forward(
        self,
        tokens_BL: Tensor,
        segments_BL: Tensor | None = None,
        valid_BL: Tensor | None = None,
        keep: Keep | None = None,
    ) -> Tensor:
        """Logits of a whole text; by default all of the first segment, and no padding."""
        x_BLD = self.embeddings(tokens_BL, segments_BL)
        x_BLD = dropout(x_BLD, self.dropout_rate, fold_path(keep, "embedding_dropout"))
        mask = padding_mask(valid_BL)
        x_BLD = self.encoder(x_BLD, mask, fold_path(keep, "encoder"))
        return self.logits(self.head(x_BLD))

    def embeddings(self, tokens_BL: Tensor, segments_BL: Tensor | None) -> Tensor:
        """LayerNorm(W[token] + P[position] + S[segment]): (B, L, D)."""
        positions = torch.arange(tokens_BL.shape[1])
        if segments_BL is None:
            segments_BL = torch.zeros_like(tokens_BL)
        x_BLD = self.embed(tokens_BL) + self.positions(positions) + self.segments(segments_BL)
        return self.embedding_norm(x_BLD)

    def logits(self, hidden_BLD: Tensor) -> Tensor:
        """The head's states times the token embedding (Press & Wolf 2017), plus a bias."""
        return hidden_BLD @ self.embed.weight.T + self.head.bias
