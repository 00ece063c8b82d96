"""GPT: a causal decoder-only Transformer, as GPT-2 (Radford et al. 2019, section 2.3).

Token plus learned position embeddings, N pre-norm blocks, a final norm, and logits by the token
embedding itself. Weights start as N(0, 0.02²); projections into the residual stream are scaled by a
further 1 / sqrt(2N). Dropout follows the embeddings, the attention weights and each sub-layer.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from jaxformer.config import GPTConfig
from jaxformer.errors import UserError
from jaxformer.layers.blocks import EncoderBlock
from jaxformer.layers.cache import KVCache
from jaxformer.layers.dropout import dropout, fold_path
from jaxformer.layers.masks import causal_mask, combine_masks
from jaxformer.layers.norms import LayerNorm
from jaxformer.layers.positions import LearnedPositions
from jaxformer.layers.stacks import ready


class GPT(nnx.Module):
    """Tokens (B, L) to logits (B, L, V) of the token that follows each; L <= context_length."""

    def __init__(self, config: GPTConfig, rngs: nnx.Rngs):
        self.embed = nnx.Embed(
            config.vocab_size,
            config.width,
            embedding_init=jax.nn.initializers.normal(config.init_std),
            dtype=jnp.dtype(config.dtype),
            param_dtype=jnp.dtype(config.param_dtype),
            rngs=rngs,
        )
        self.positions = LearnedPositions(config.context_length, config, rngs)
        self.blocks = nnx.List([EncoderBlock(config, rngs) for _ in range(config.num_layers)])
        self.norm = LayerNorm(config)
        self.dropout_rate = config.dropout_rate
        self.remat = config.remat

    def __call__(
        self,
        tokens_BL: Int[Array, "B L"],
        mask: Bool[Array, "#B #H #L #L"] | None = None,
        dropout_key: Key[Array, ""] | None = None,
    ) -> Float[Array, "B L V"]:
        """Logits of a whole sequence; `mask` (padding, segments) narrows the causal one.

        Dropout is on when a key is given: that of the step, `step_key(key, step)`.

        Raises:
            UserError: for a text longer than the context.
        """
        L, T = tokens_BL.shape[1], self.positions.embedding.shape[0]
        if L > T:
            raise UserError(f"{L} tokens are more than the context of {T}: give a shorter text")
        x_BLD = self.embed(tokens_BL) + self.positions(jnp.arange(L))
        x_BLD = dropout(x_BLD, self.dropout_rate, fold_path(dropout_key, "embedding_dropout"))
        mask = combine_masks(causal_mask(L), mask)
        for i, block in enumerate(self.blocks):
            x_BLD = ready(block, self.remat)(x_BLD, mask, fold_path(dropout_key, "blocks", i))
        return self.logits(self.norm(x_BLD))

    def decode(
        self,
        tokens_BL: Int[Array, "B L"],
        positions: Int[Array, "B L"],
        caches: list[KVCache],
    ) -> tuple[Float[Array, "B L D"], list[KVCache]]:
        """Final hidden states of new tokens at their positions, and the caches with them added.

        Apply `logits` to the states that are needed: at a large V that saves most of the work.
        """
        x_BLD = self.embed(tokens_BL) + self.positions(positions)
        updated = []
        for block, cache in zip(self.blocks, caches, strict=True):
            x_BLD, cache = block.decode(x_BLD, positions, cache)
            updated.append(cache)
        return self.norm(x_BLD), updated

    def logits(self, hidden_BLD: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
        """Hidden states times the token embedding (Press & Wolf 2017)."""
        return self.embed.attend(hidden_BLD)
