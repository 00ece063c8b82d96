"""The encoder-decoder Transformer (Vaswani et al. 2017, section 3).

Token embeddings times sqrt(D) plus sinusoidal positions, an encoder that sees the whole source, and
a decoder that sees the target so far and the encoder's output. One matrix serves source, target and
output, or each has its own. Dropout follows the embeddings and each sub-layer (section 5.4).
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from jaxformer.config import TransformerConfig
from jaxformer.errors import UserError
from jaxformer.layers.blocks import DecoderCache
from jaxformer.layers.dropout import dropout, fold_path
from jaxformer.layers.linear import Linear
from jaxformer.layers.masks import causal_mask, combine_masks, padding_mask
from jaxformer.layers.positions import sinusoidal_positions
from jaxformer.layers.stacks import Decoder, Encoder


class Transformer(nnx.Module):
    """Source (B, M) and target (B, L) to logits (B, L, V) of the token after each of the target.

    `source_valid` and `target_valid` are True where a token is one, False where it is padding. What
    the model says at padding means nothing and touches nothing else.
    """

    def __init__(self, config: TransformerConfig, rngs: nnx.Rngs):
        def embedding() -> nnx.Embed:
            return nnx.Embed(
                config.vocab_size,
                config.width,
                embedding_init=jax.nn.initializers.normal(config.init_std),
                dtype=jnp.dtype(config.dtype),
                param_dtype=jnp.dtype(config.param_dtype),
                rngs=rngs,
            )

        if config.share_embeddings:
            self.embed = embedding()
        else:
            self.source_embed = embedding()
            self.target_embed = embedding()
            self.output = Linear((config.width, config.vocab_size), config, rngs, use_bias=False)
        self.encoder = Encoder(config, rngs)
        self.decoder = Decoder(config, rngs)
        self.config = config

    def __call__(
        self,
        source_BM: Int[Array, "B M"],
        target_BL: Int[Array, "B L"],
        source_valid_BM: Bool[Array, "B M"] | None = None,
        target_valid_BL: Bool[Array, "B L"] | None = None,
        dropout_key: Key[Array, ""] | None = None,
    ) -> Float[Array, "B L V"]:
        """Logits of a whole target. Dropout is on when a key is given, `step_key(key, step)`.

        Raises:
            UserError: for a source or target longer than the context.
        """
        memory_BMD = self.encode(source_BM, source_valid_BM, dropout_key)
        L = target_BL.shape[1]
        x_BLD = self.embed_target(target_BL, jnp.arange(L))
        x_BLD = dropout(
            x_BLD, self.config.dropout_rate, fold_path(dropout_key, "target_embedding_dropout")
        )
        mask = combine_masks(causal_mask(L), padding(target_valid_BL))
        key = fold_path(dropout_key, "decoder")
        x_BLD = self.decoder(x_BLD, memory_BMD, mask, padding(source_valid_BM), key)
        return self.logits(x_BLD)

    def encode(
        self,
        source_BM: Int[Array, "B M"],
        source_valid_BM: Bool[Array, "B M"] | None = None,
        dropout_key: Key[Array, ""] | None = None,
    ) -> Float[Array, "B M D"]:
        """The encoder's output, the memory that the decoder attends to.

        Raises:
            UserError: for a source longer than the context.
        """
        embed = self.embed if self.config.share_embeddings else self.source_embed
        x_BMD = self.scaled(embed, source_BM, jnp.arange(source_BM.shape[1]))
        x_BMD = dropout(
            x_BMD, self.config.dropout_rate, fold_path(dropout_key, "source_embedding_dropout")
        )
        key = fold_path(dropout_key, "encoder")
        return self.encoder(x_BMD, padding(source_valid_BM), key)

    def start(self, memory_BMD: Float[Array, "B M D"], length: int) -> list[DecoderCache]:
        """Caches for decoding up to `length` tokens from the encoder's output."""
        return self.decoder.start(memory_BMD, length)

    def decode(
        self,
        target_BL: Int[Array, "B L"],
        positions_BL: Int[Array, "B L"],
        source_valid_BM: Bool[Array, "B M"] | None,
        caches: list[DecoderCache],
    ) -> tuple[Float[Array, "B L D"], list[DecoderCache]]:
        """Final hidden states of new tokens at their positions, and the caches with them added."""
        x_BLD = self.embed_target(target_BL, positions_BL)
        return self.decoder.decode(x_BLD, positions_BL, padding(source_valid_BM), caches)

    def embed_target(
        self, target_BL: Int[Array, "B L"], positions: Int[Array, "*B L"]
    ) -> Float[Array, "B L D"]:
        """Target tokens at their positions, as the decoder reads them."""
        embed = self.embed if self.config.share_embeddings else self.target_embed
        return self.scaled(embed, target_BL, positions)

    def scaled(
        self, embed: nnx.Embed, tokens_BL: Int[Array, "B L"], positions: Int[Array, "*B L"]
    ) -> Float[Array, "B L D"]:
        """sqrt(D) W[token] + PE[position] (sections 3.4 and 3.5).

        Raises:
            UserError: for a text longer than the context.
        """
        L, T, D = tokens_BL.shape[1], self.config.context_length, self.config.width
        if L > T:
            raise UserError(f"{L} tokens are more than the context of {T}: give a shorter text")
        table = jnp.asarray(sinusoidal_positions(T, D), self.config.dtype)
        return math.sqrt(D) * embed(tokens_BL) + table[positions]

    def logits(self, hidden_BLD: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
        """Hidden states times the shared embedding (Press & Wolf 2017), or the output's matrix."""
        if self.config.share_embeddings:
            return self.embed.attend(hidden_BLD)
        return self.output(hidden_BLD)


def padding(valid_BM: Bool[Array, "B M"] | None) -> Bool[Array, "B 1 1 M"] | None:
    """`padding_mask`, where there is something to mask."""
    return None if valid_BM is None else padding_mask(valid_BM)
