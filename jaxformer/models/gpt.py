"""GPT: a causal decoder-only Transformer, as GPT-2 (Radford et al. 2019, section 2.3).

Token plus learned position embeddings, N blocks (pre-norm by default), a final norm, and logits by
the token embedding itself. Weights start as N(0, init_std²), 0.02 in GPT-2; projections into the
residual stream are scaled by a further 1 / sqrt(2N). Dropout follows the embeddings, the attention
weights and each sub-layer.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from jaxformer.config import GPTConfig
from jaxformer.layers.blocks import EncoderBlock
from jaxformer.layers.cache import KVCache, cache_slots
from jaxformer.layers.dropout import dropout, fold_path
from jaxformer.layers.embedding import Embedding
from jaxformer.layers.masks import CAUSAL, Mask, combine_masks, position_mask
from jaxformer.layers.norms import LayerNorm
from jaxformer.layers.positions import LearnedPositions, require_context
from jaxformer.layers.stacks import apply_blocks, make_blocks


class GPT(nnx.Module):
    """Tokens (B, L) to logits (B, L, V) of the token that follows each; L <= context_length."""

    def __init__(self, config: GPTConfig, rngs: nnx.Rngs):
        self.embed = Embedding(config.vocab_size, config, rngs)
        self.positions = LearnedPositions(config.context_length, config, rngs)
        self.blocks = make_blocks(EncoderBlock, config, rngs)
        self.norm = LayerNorm(config)
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
        L = tokens_BL.shape[1]
        require_context(L, self.config.context_length)
        positions = jnp.arange(L)[None] if positions is None else positions
        seen = CAUSAL if caches is None else position_mask(positions, cache_slots(caches[0]))
        mask = combine_masks(seen, mask)
        x_BLD = self.embed(tokens_BL) + self.positions(positions)
        key = fold_path(dropout_key, "embedding_dropout")
        x_BLD = dropout(x_BLD, self.config.dropout_rate, key)
        x_BLD, caches = apply_blocks(
            self.blocks, self.config.remat, x_BLD, (mask,), dropout_key, caches, positions
        )
        return self.norm(x_BLD), caches

    def logits(self, hidden: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
        """Hidden states times the token embedding (Press & Wolf 2017)."""
        return self.embed.attend(hidden)
