"""The encoder-decoder Transformer (Vaswani et al. 2017, section 3).

Token embeddings times sqrt(D) plus sinusoidal positions, an encoder that sees the whole source, and
a decoder that sees the target so far and the encoder's output. One matrix serves source, target and
output, or each has its own. Dropout follows the embeddings and each sub-layer (section 5.4).
"""

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from jaxformer.config import TransformerConfig
from jaxformer.layers.cache import DecoderCache, cache_slots, init_cache
from jaxformer.layers.dropout import dropout, fold_path
from jaxformer.layers.embedding import Embedding
from jaxformer.layers.linear import Linear
from jaxformer.layers.masks import CAUSAL, Mask, combine_masks, padding_mask, position_mask
from jaxformer.layers.positions import require_context, sinusoidal_positions
from jaxformer.layers.stacks import Decoder, Encoder


class Transformer(nnx.Module):
    """Source (B, M) and target (B, L) to logits (B, L, V) of the token after each of the target.

    `source_valid` and `target_valid` are True at tokens, False at padding, or the number of tokens
    in each row if padding follows them. Logits at padding have no meaning and no effect on others.
    """

    def __init__(self, config: TransformerConfig, rngs: nnx.Rngs):
        if config.share_embeddings:
            self.embed = Embedding(config.vocab_size, config, rngs)
        else:
            self.source_embed = Embedding(config.vocab_size, config, rngs)
            self.target_embed = Embedding(config.vocab_size, config, rngs)
            self.output = Linear((config.width, config.vocab_size), config, rngs, use_bias=False)
        self.encoder = Encoder(config, rngs)
        self.decoder = Decoder(config, rngs)
        self.config = config

    def __call__(
        self,
        source_BM: Int[Array, "B M"],
        target_BL: Int[Array, "B L"],
        source_valid_BM: Bool[Array, "B M"] | Int[Array, " B"] | None = None,
        target_valid_BL: Bool[Array, "B L"] | Int[Array, " B"] | None = None,
        dropout_key: Key[Array, ""] | None = None,
    ) -> Float[Array, "B L V"]:
        """Logits of a whole target. Dropout is on if the key of the step is given.

        Raises:
            UserError: for a source or target longer than the context.
        """
        memory_BMD = self.encode(source_BM, source_valid_BM, dropout_key)
        masks = target_valid_BL, source_valid_BM
        return self.logits(self.hidden(target_BL, memory_BMD, *masks, dropout_key)[0])

    def encode(
        self,
        source_BM: Int[Array, "B M"],
        source_valid_BM: Bool[Array, "B M"] | Int[Array, " B"] | None = None,
        dropout_key: Key[Array, ""] | None = None,
    ) -> Float[Array, "B M D"]:
        """The encoder's output, the memory that the decoder attends to.

        Raises:
            UserError: for a source longer than the context.
        """
        require_context(source_BM.shape[1], self.config.context_length)
        embed = self.embed if self.config.share_embeddings else self.source_embed
        key = fold_path(dropout_key, "source_embedding_dropout")
        x_BMD = self.embed_tokens(embed, source_BM, jnp.arange(source_BM.shape[1]), key)
        return self.encoder(x_BMD, padding_mask(source_valid_BM), fold_path(dropout_key, "encoder"))

    def hidden(
        self,
        target_BL: Int[Array, "B L"],
        memory_BMD: Float[Array, "B M D"] | None,
        target_valid_BS: Bool[Array, "B S"] | Int[Array, " B"] | None = None,
        source_valid_BM: Bool[Array, "B M"] | Int[Array, " B"] | None = None,
        dropout_key: Key[Array, ""] | None = None,
        caches: Sequence[DecoderCache] | None = None,
        positions: Int[Array, "#B L"] | None = None,
        mask: Mask | Bool[Array, "#B #H #L #S"] | None = None,
        slots: Int[Array, "#B L"] | None = None,
    ) -> tuple[Float[Array, "B L D"], list[Any]]:
        """The decoder's final hidden states, and each block's cache with the tokens added.

        Training, prefill and decoding all run this.

        Args:
            target_BL: a target or, with caches, the next piece of it.
            memory_BMD: the encoder's output; with caches it is in them.
            target_valid_BS: True at tokens, False at padding; with caches over their slots. Or
                the number of tokens in each row, if padding follows them.
            source_valid_BM: the same of the source.
            dropout_key: of the call; None turns dropout off.
            caches: one per block, see `init_cache`; None without.
            positions: of the tokens in the target, below its context; from 0.
            mask: over tokens or slots, in place of the causal mask of the positions.
            slots: of the tokens in the caches; by default their positions.

        Raises:
            UserError: for a target longer than the context.
        """
        if positions is None:
            require_context(target_BL.shape[1], self.config.context_length)
            positions = jnp.arange(target_BL.shape[1])[None]
        if mask is None:
            own = None if caches is None else cache_slots(caches[0].own)
            mask = CAUSAL if own is None else position_mask(positions, own)
        mask = combine_masks(mask, padding_mask(target_valid_BS))
        embed = self.embed if self.config.share_embeddings else self.target_embed
        key = fold_path(dropout_key, "target_embedding_dropout")
        x_BLD = self.embed_tokens(embed, target_BL, positions, key)
        key, memory_mask = fold_path(dropout_key, "decoder"), padding_mask(source_valid_BM)
        slots = positions if slots is None else slots
        return self.decoder(x_BLD, memory_BMD, mask, memory_mask, key, caches, slots)

    def init_cache(self, memory_BMD: Float[Array, "B M D"], length: int) -> list[DecoderCache]:
        """Caches for decoding up to `length` tokens from the encoder's output."""
        own = init_cache(self.config, memory_BMD.shape[0], length)
        return list(map(DecoderCache, own, self.decoder.project_kv(memory_BMD)))

    def embed_tokens(
        self,
        embed: Embedding,
        tokens_BL: Int[Array, "B L"],
        positions: Int[Array, "*B L"],
        dropout_key: Key[Array, ""] | None = None,
    ) -> Float[Array, "B L D"]:
        """dropout(sqrt(D) W[token] + PE[position]) (sections 3.4, 3.5 and 5.4)."""
        T, D = self.config.context_length, self.config.width
        table = jnp.asarray(sinusoidal_positions(T, D), self.config.precision.compute)
        x_BLD = math.sqrt(D) * embed(tokens_BL) + table[positions]
        return dropout(x_BLD, self.config.dropout_rate, dropout_key)

    def logits(self, hidden: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
        """Hidden states times the shared embedding (Press & Wolf 2017), or the output's matrix."""
        if self.config.share_embeddings:
            return self.embed.attend(hidden)
        return self.output(hidden)
