"""The encoder-decoder Transformer (Vaswani et al. 2017, section 3).

Token embeddings times sqrt(D) plus sinusoidal positions, an encoder that sees the whole source, and
a decoder that sees the target so far and the encoder's output. One matrix serves source, target and
output, or each has its own. Dropout follows the embeddings and each sub-layer (section 5.4).
"""

import math

import torch
from torch import Tensor, nn

from torchref.config import TransformerConfig
from torchref.layers.dropout import Keep, dropout, fold_path
from torchref.layers.linear import init_linears
from torchref.layers.masks import combine_masks, padding_mask, position_mask
from torchref.layers.positions import sinusoidal_positions
from torchref.layers.stacks import Decoder, Encoder


class Transformer(nn.Module):
    """Source (B, M) and target (B, L) to logits (B, L, V) of the token after each of the target.

    `source_valid` and `target_valid` are True at tokens, False at padding. Logits at padding have
    no meaning and no effect on others.
    """

    def __init__(self, config: TransformerConfig):
        super().__init__()
        if config.share_embeddings:
            self.embed = nn.Embedding(config.vocab_size, config.width)
        else:
            self.source_embed = nn.Embedding(config.vocab_size, config.width)
            self.target_embed = nn.Embedding(config.vocab_size, config.width)
            self.output = nn.Linear(config.width, config.vocab_size, bias=False)
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.config = config
        self.init_weights()

    def init_weights(self) -> None:
        """N(0, init_std²) for embeddings, the config's initializer for all other matrices."""
        for module in self.modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=self.config.init_std)
        init_linears(self, self.config)

    def forward(
        self,
        source_BM: Tensor,
        target_BL: Tensor,
        source_valid_BM: Tensor | None = None,
        target_valid_BL: Tensor | None = None,
        keep: Keep | None = None,
    ) -> Tensor:
        """Logits of a whole target; M and L are at most context_length."""
        memory_BMD = self.encode(source_BM, source_valid_BM, keep)
        embed = self.embed if self.config.share_embeddings else self.target_embed
        x_BLD = self.embed_tokens(embed, target_BL, fold_path(keep, "target_embedding_dropout"))
        positions = torch.arange(target_BL.shape[1])[None]
        mask = combine_masks(position_mask(positions, positions), padding_mask(target_valid_BL))
        x_BLD = self.decoder(
            x_BLD, memory_BMD, mask, padding_mask(source_valid_BM), fold_path(keep, "decoder")
        )
        return self.logits(x_BLD)

    def encode(
        self,
        source_BM: Tensor,
        source_valid_BM: Tensor | None = None,
        keep: Keep | None = None,
    ) -> Tensor:
        """The encoder's output (B, M, D), the memory that the decoder attends to."""
        embed = self.embed if self.config.share_embeddings else self.source_embed
        x_BMD = self.embed_tokens(embed, source_BM, fold_path(keep, "source_embedding_dropout"))
        return self.encoder(x_BMD, padding_mask(source_valid_BM), fold_path(keep, "encoder"))

    def embed_tokens(
        self, embed: nn.Embedding, tokens_BL: Tensor, keep: Keep | None = None
    ) -> Tensor:
        """dropout(sqrt(D) W[token] + PE[position]) (sections 3.4, 3.5 and 5.4)."""
        L, D = tokens_BL.shape[1], self.config.width
        table = sinusoidal_positions(L, D).to(embed.weight.dtype)
        return dropout(math.sqrt(D) * embed(tokens_BL) + table, self.config.dropout_rate, keep)

    def logits(self, hidden_BLD: Tensor) -> Tensor:
        """Hidden states times the shared embedding (Press & Wolf 2017), or the output's matrix."""
        if self.config.share_embeddings:
            return hidden_BLD @ self.embed.weight.T
        return self.output(hidden_BLD)
