"""The decoder-only Transformer of today, composed by its config: Llama, Mistral, Qwen, Gemma.

Token embeddings, N blocks of grouped-query attention with rotary positions and a gated MLP, each
behind an RMSNorm (Touvron et al. 2023, section 2.2), a final RMSNorm, and logits by the token
embedding or by an output head of its own. Options of the config are those of Mistral (a sliding
window; Jiang et al. 2023, section 2), Qwen (biases of queries, keys and values, or norms in their
place; Yang et al. 2025, section 2) and Gemma (soft caps, more norms, scaled embeddings; Gemma 2
2024, section 2). Weights start as GPT's, dropout follows at the same places.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from jaxformer.config import DecoderConfig
from jaxformer.layers.blocks import CausalBlock
from jaxformer.layers.cache import KVCache, cache_slots
from jaxformer.layers.dropout import dropout, fold_path
from jaxformer.layers.embedding import Embedding
from jaxformer.layers.linear import Linear
from jaxformer.layers.masks import Mask, combine_masks, position_mask, window_mask
from jaxformer.layers.norms import RMSNorm
from jaxformer.layers.positions import require_context
from jaxformer.layers.rotary import rotation
from jaxformer.layers.soft_cap import soft_cap
from jaxformer.layers.stacks import apply_blocks, make_blocks


class Decoder(nnx.Module):
    """Tokens (B, L) to logits (B, L, V) of the token that follows each; L <= context_length."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        self.embed = Embedding(config.vocab_size, config, rngs)
        self.blocks = make_blocks(CausalBlock, config, rngs)
        self.norm = RMSNorm(config.width, config)
        if not config.tie_embeddings:
            self.output = Linear((config.width, config.vocab_size), config, rngs, use_bias=False)
        self.config = config

    def __call__(
        self,
        tokens_BL: Int[Array, "B L"],
        mask: Mask | Bool[Array, "#B #H #L #L"] | None = None,
        dropout_key: Key[Array, ""] | None = None,
    ) -> Float[Array, "B L V"]:
        """Logits of a whole text; `mask` (padding, segments) narrows the causal one.

        Dropout is on if a key is given; `layers/dropout.py` says which key training gives.

        Raises:
            UserError: for a text longer than the context.
        """
        return self.logits(self.hidden(tokens_BL, mask, dropout_key)[0])

    def hidden(
        self,
        tokens_BL: Int[Array, "B L"],
        mask: Mask | Bool[Array, "#B #H #L #M"] | None = None,
        dropout_key: Key[Array, ""] | None = None,
        caches: Sequence[KVCache] | None = None,
        positions: Int[Array, "#B L"] | None = None,
    ) -> tuple[Float[Array, "B L D"], list[Any]]:
        """Final hidden states, and each block's cache with the tokens added.

        Training, prefill and decoding all run this; `logits` is for the states that need them.

        Args:
            tokens_BL: a text or, with caches, the next piece of it.
            mask: narrows the causal mask, which with caches is over their slots.
            dropout_key: of the call; None turns dropout off.
            caches: one per block, see `init_cache`; None without.
            positions: of the tokens in the text, below its context, and their slots; from 0.
        """
        L, config = tokens_BL.shape[1], self.config
        require_context(L, config.context_length)
        positions = jnp.arange(L)[None] if positions is None else positions
        slots = None if caches is None else cache_slots(caches[0])
        mask = combine_masks(self.seen(positions, slots), mask)
        x_BLD = self.embed_tokens(tokens_BL, fold_path(dropout_key, "embedding_dropout"))
        inputs = rotation(positions, config), mask
        x_BLD, caches = apply_blocks(
            self.blocks, config.remat, x_BLD, inputs, dropout_key, caches, positions
        )
        return self.norm(x_BLD), caches

    def seen(
        self, positions: Int[Array, "#B L"], slots: Int[Array, "1 M"] | None
    ) -> Mask | Bool[Array, "#B 1 L M"]:
        """The causal mask, narrowed by the sliding window if there is one."""
        window = self.config.sliding_window
        if slots is None:
            return Mask(causal=True, window=window)
        causal = position_mask(positions, slots)
        return causal if window is None else causal & window_mask(positions, slots, window)

    def embed_tokens(
        self, tokens_BL: Int[Array, "B L"], dropout_key: Key[Array, ""] | None = None
    ) -> Float[Array, "B L D"]:
        """dropout(W[token]), or of sqrt(D) W[token]."""
        x_BLD = self.embed(tokens_BL)
        if self.config.scale_embeddings:
            x_BLD = math.sqrt(self.config.width) * x_BLD
        return dropout(x_BLD, self.config.dropout_rate, dropout_key)

    def logits(self, hidden: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
        """Hidden states times the token embedding or the output head, under the final soft cap."""
        tied = self.config.tie_embeddings
        logits = self.embed.attend(hidden) if tied else self.output(hidden)
        return soft_cap(logits, self.config.final_soft_cap)
