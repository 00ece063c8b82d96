"""BERT: an encoder with its masked-language-model head (Devlin et al. 2019, sections 3 and A.2).

The sum of token, position and segment embeddings (figure 2) is normalised, then dropped, and N
post-norm blocks see the whole text, both ways. The head maps each final state by a dense layer, the
blocks' activation (published: the exact GELU) and a norm, and multiplies it by the token embedding
itself, plus a bias for each token. Details that the paper leaves open follow its published code,
https://github.com/google-research/bert. The pooler and the next-sentence head are left out, as in
later work (Liu et al. 2019, section 4.2).
"""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from jaxformer.config import BertConfig
from jaxformer.layers.dropout import dropout, fold_path
from jaxformer.layers.embedding import Embedding
from jaxformer.layers.linear import Linear
from jaxformer.layers.masks import padding_mask
from jaxformer.layers.mlp import ACTIVATIONS
from jaxformer.layers.norms import LayerNorm
from jaxformer.layers.positions import LearnedPositions, require_context
from jaxformer.layers.stacks import Encoder


class MaskedLanguageHead(nnx.Module):
    """h -> LayerNorm(activation(h W + b)), and the bias of each token's logit."""

    def __init__(self, config: BertConfig, rngs: nnx.Rngs):
        self.dense = Linear((config.width, config.width), config, rngs)
        self.norm = LayerNorm(config)
        self.bias = nnx.Param(jnp.zeros(config.vocab_size, config.param_dtype))
        self.activation = config.activation

    def __call__(self, hidden_BLD: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        return self.norm(ACTIVATIONS[self.activation](self.dense(hidden_BLD)))


class Bert(nnx.Module):
    """Tokens (B, L) to logits (B, L, V) of the token at each position.

    The head gives logits at every position; training uses only those of masked tokens. Logits at
    padding have no meaning and no effect on others.
    """

    def __init__(self, config: BertConfig, rngs: nnx.Rngs):
        self.embed = Embedding(config.vocab_size, config, rngs)
        self.positions = LearnedPositions(config.context_length, config, rngs)
        self.segments = Embedding(config.num_segments, config, rngs)
        self.embedding_norm = LayerNorm(config)
        self.encoder = Encoder(config, rngs)
        self.head = MaskedLanguageHead(config, rngs)
        self.config = config

    def __call__(
        self,
        tokens_BL: Int[Array, "B L"],
        segments_BL: Int[Array, "B L"] | None = None,
        valid_BL: Bool[Array, "B L"] | Int[Array, " B"] | None = None,
        dropout_key: Key[Array, ""] | None = None,
    ) -> Float[Array, "B L V"]:
        """Logits of a whole text.

        Args:
            tokens_BL: L is at most the context length.
            segments_BL: the segment of each token, below num_segments; 0 by default.
            valid_BL: True at tokens, False at padding; or the number of tokens in each row, if
                padding follows them.
            dropout_key: of the call (see `layers/dropout.py`); None turns dropout off.

        Raises:
            UserError: for a text longer than the context.
        """
        return self.logits(self.hidden(tokens_BL, segments_BL, valid_BL, dropout_key))

    def hidden(
        self,
        tokens_BL: Int[Array, "B L"],
        segments_BL: Int[Array, "B L"] | None = None,
        valid_BL: Bool[Array, "B L"] | Int[Array, " B"] | None = None,
        dropout_key: Key[Array, ""] | None = None,
    ) -> Float[Array, "B L D"]:
        """The head's states, of which `logits` makes the logits."""
        key = fold_path(dropout_key, "embedding_dropout")
        x_BLD = dropout(self.embeddings(tokens_BL, segments_BL), self.config.dropout_rate, key)
        x_BLD = self.encoder(x_BLD, padding_mask(valid_BL), fold_path(dropout_key, "encoder"))
        return self.head(x_BLD)

    def embeddings(
        self, tokens_BL: Int[Array, "B L"], segments_BL: Int[Array, "B L"] | None
    ) -> Float[Array, "B L D"]:
        """LayerNorm(W[token] + P[position] + S[segment])."""
        L = tokens_BL.shape[1]
        require_context(L, self.config.context_length)
        if segments_BL is None:
            segments_BL = jnp.zeros_like(tokens_BL)
        x_BLD = self.embed(tokens_BL) + self.positions(jnp.arange(L)) + self.segments(segments_BL)
        return self.embedding_norm(x_BLD)

    def logits(self, hidden_BLD: Float[Array, "B L D"]) -> Float[Array, "B L V"]:
        """The head's states times the token embedding (Press & Wolf 2017), plus a bias."""
        logits_BLV = self.embed.attend(hidden_BLD)
        # Added in the wider type: the gradient of a bias is a sum over all tokens.
        return (logits_BLV + self.head.bias[...]).astype(logits_BLV.dtype)
