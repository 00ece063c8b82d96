"""Token embeddings, and the tied output head that multiplies by the same matrix."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxformer.config import LayerConfig


class Embedding(nnx.Module):
    """W of shape (V, D), one row per token, drawn from N(0, std²); the twin is torch.nn.Embedding.

    All products with matrices of a model are in `Linear` and in `attend`.
    """

    def __init__(self, num_embeddings: int, config: LayerConfig, rngs: nnx.Rngs):
        init = jax.nn.initializers.normal(config.init_std)
        shape = (num_embeddings, config.width)
        self.embedding = nnx.Param(init(rngs.params(), shape, config.param_dtype))
        self.dtype = config.precision.compute

    def __call__(self, tokens: Int[Array, "*B"]) -> Float[Array, "*B D"]:
        """W[token]."""
        return jnp.take(self.embedding[...].astype(self.dtype), tokens, axis=0)

    def attend(self, hidden: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
        """h Wᵀ, the logits of every token (Press & Wolf 2017)."""
        return hidden.astype(self.dtype) @ self.embedding[...].astype(self.dtype).T
