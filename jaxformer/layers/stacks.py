"""Encoder and decoder stacks of N blocks (Vaswani et al. 2017, section 3.1).

Post-LN blocks end with their own norm; pre-LN blocks leave the sum unnormalised, so a pre-LN stack
ends with one more (Xiong et al. 2020, section 3.1).
"""

import functools
from collections.abc import Callable

import jax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from jaxformer.config import BlockConfig
from jaxformer.layers.blocks import DecoderBlock, DecoderCache, EncoderBlock, identity
from jaxformer.layers.cache import init_cache
from jaxformer.layers.dropout import fold_path
from jaxformer.layers.norms import LayerNorm


def ready(block: nnx.Module, remat: bool) -> Callable[..., Array]:
    """The block as a function; with `remat` its backward pass starts from its inputs alone.

    What the block computes in between is then computed twice and kept only while this block's
    gradients need it (Chen et al. 2016, section 3). Values and gradients stay what they were.
    """
    if not remat:
        return block
    graphdef, params = nnx.split(block)
    again = jax.checkpoint(lambda params, *inputs: nnx.merge(graphdef, params)(*inputs))
    return functools.partial(again, params)


class Encoder(nnx.Module):
    """N encoder blocks, one after the other."""

    def __init__(self, config: BlockConfig, rngs: nnx.Rngs):
        self.blocks = nnx.List([EncoderBlock(config, rngs) for _ in range(config.num_layers)])
        self.norm = LayerNorm(config) if config.norm_placement == "pre" else None
        self.remat = config.remat

    def __call__(
        self,
        x_BLD: Float[Array, "B L D"],
        mask: Bool[Array, "#B #H #L #L"] | None = None,
        dropout_key: Key[Array, ""] | None = None,
    ) -> Float[Array, "B L D"]:
        for i, block in enumerate(self.blocks):
            x_BLD = ready(block, self.remat)(x_BLD, mask, fold_path(dropout_key, "blocks", i))
        return (self.norm or identity)(x_BLD)


class Decoder(nnx.Module):
    """N decoder blocks, each attending to the encoder's output."""

    def __init__(self, config: BlockConfig, rngs: nnx.Rngs):
        self.blocks = nnx.List([DecoderBlock(config, rngs) for _ in range(config.num_layers)])
        self.norm = LayerNorm(config) if config.norm_placement == "pre" else None
        self.config = config

    def __call__(
        self,
        x_BLD: Float[Array, "B L D"],
        memory_BMD: Float[Array, "B M D"],
        mask: Bool[Array, "#B #H #L #L"] | None = None,
        memory_mask: Bool[Array, "#B #H #L #M"] | None = None,
        dropout_key: Key[Array, ""] | None = None,
    ) -> Float[Array, "B L D"]:
        for i, block in enumerate(self.blocks):
            key = fold_path(dropout_key, "blocks", i)
            x_BLD = ready(block, self.config.remat)(x_BLD, memory_BMD, mask, memory_mask, key)
        return (self.norm or identity)(x_BLD)

    def start(self, memory_BMD: Float[Array, "B M D"], length: int) -> list[DecoderCache]:
        """Caches for decoding up to `length` tokens from the encoder's output."""
        B = memory_BMD.shape[0]
        return [
            DecoderCache(
                init_cache(self.config, B, length), block.cross_attention.remember(memory_BMD)
            )
            for block in self.blocks
        ]

    def decode(
        self,
        x_BLD: Float[Array, "B L D"],
        positions: Int[Array, "B L"],
        memory_mask: Bool[Array, "#B #H #L #M"] | None,
        caches: list[DecoderCache],
    ) -> tuple[Float[Array, "B L D"], list[DecoderCache]]:
        """The stack on new tokens at their positions, and the caches with them added."""
        updated = []
        for block, cache in zip(self.blocks, caches, strict=True):
            x_BLD, cache = block.decode(x_BLD, positions, memory_mask, cache)
            updated.append(cache)
        return (self.norm or identity)(x_BLD), updated
