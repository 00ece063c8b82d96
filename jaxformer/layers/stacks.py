"""Encoder and decoder stacks of N blocks (Vaswani et al. 2017, section 3.1).

Post-LN blocks end with their own norm; pre-LN blocks leave the sum unnormalised, so a pre-LN stack
ends with one more (Xiong et al. 2020, section 3.1).
"""

import functools
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from jaxformer.config import BlockConfig, LayerConfig, Remat
from jaxformer.layers.blocks import DecoderBlock, EncoderBlock
from jaxformer.layers.cache import DecoderCache, KVCache
from jaxformer.layers.dropout import fold_path
from jaxformer.layers.linear import PRODUCT
from jaxformer.layers.masks import Mask
from jaxformer.layers.norms import LayerNorm

BlockClass = Callable[[Any, nnx.Rngs], nnx.Module]


class StackedBlocks(nnx.Module):
    """N blocks of one class as one, whose parameters have a leading layer axis.

    The parameters are `stacked/...` where a list of blocks has `0/...` to `N-1/...`, and begin with
    the same values. `rows` is the sharding of activations inside the loop, if it is to have one.
    """

    def __init__(self, block: BlockClass, config: LayerConfig, rngs: nnx.Rngs):
        streams, counts = nnx.split(rngs)

        def draw(counts: PyTree, _: None) -> tuple[PyTree, PyTree]:
            rngs = nnx.merge(streams, counts)
            params = nnx.state(block(config, rngs))
            return nnx.state(rngs), params

        counts, params = jax.lax.scan(draw, counts, length=config.num_layers)
        nnx.update(rngs, counts)
        graphdef = nnx.graphdef(nnx.eval_shape(lambda: block(config, nnx.Rngs(0))))
        self.stacked = nnx.merge(graphdef, params)
        self.num_layers = config.num_layers
        self.rows: NamedSharding | None = None

    def __iter__(self) -> Iterator[Any]:
        """Each block by itself, of slices of the parameters."""
        graphdef, params = nnx.split(self.stacked)
        for i in range(self.num_layers):
            yield nnx.merge(graphdef, jax.tree.map(operator.itemgetter(i), params))


Blocks = Iterable[Any]
"""The blocks of a stack, in a list or as `StackedBlocks`."""


def make_blocks(block: BlockClass, config: LayerConfig, rngs: nnx.Rngs) -> Blocks:
    """The N blocks of a stack, as a list or, with `scan_layers`, stacked."""
    if config.scan_layers:
        return StackedBlocks(block, config, rngs)
    return nnx.List([block(config, rngs) for _ in range(config.num_layers)])


def apply_blocks(
    blocks: Blocks,
    remat: Remat,
    x_BLD: Float[Array, "B L D"],
    inputs: tuple[Any, ...],
    dropout_key: Key[Array, ""] | None,
    caches: Sequence[Any] | None = None,
    positions: Int[Array, "#B L"] | None = None,
) -> tuple[Float[Array, "B L D"], list[Any]]:
    """Apply one block after the other; returns the output, and the cache of each block if any.

    Stacked blocks are scanned, unless there are caches: these are written in place, one by one.
    """
    if isinstance(blocks, StackedBlocks) and caches is None:
        return scan_blocks(blocks, remat, x_BLD, inputs, dropout_key, positions), []
    written = []
    for i, block in enumerate(blocks):
        key, cache = fold_path(dropout_key, "blocks", i), None if caches is None else caches[i]
        x_BLD, cache = maybe_remat(block, remat)(x_BLD, *inputs, key, cache, positions)
        written.append(cache)
    return x_BLD, written


def scan_blocks(
    blocks: StackedBlocks,
    remat: Remat,
    x_BLD: Float[Array, "B L D"],
    inputs: tuple[Any, ...],
    dropout_key: Key[Array, ""] | None,
    positions: Int[Array, "#B L"] | None = None,
) -> Float[Array, "B L D"]:
    """Apply one block after the other by a loop over the layer axis, which is compiled once."""
    graphdef, params = nnx.split(blocks.stacked)

    def apply_block(x_BLD: Array, layer: tuple[Array, PyTree]) -> tuple[Array, None]:
        index, params = layer
        if blocks.rows is not None:
            x_BLD = jax.lax.with_sharding_constraint(x_BLD, blocks.rows)
        block, key = nnx.merge(graphdef, params), fold_path(dropout_key, "blocks", index)
        x_BLD, _ = maybe_remat(block, remat)(x_BLD, *inputs, key, None, positions)
        return x_BLD, None

    indices = jnp.arange(blocks.num_layers, dtype=jnp.uint32)
    x_BLD, _ = jax.lax.scan(apply_block, x_BLD, (indices, params))
    return x_BLD


def maybe_remat(block: Any, remat: Remat) -> Callable[..., tuple[Array, Any]]:
    """The block; unless `remat` is none its backward pass recomputes the activations inside it.

    Saves the memory of activations by computing them twice (Chen et al. 2016, section 3). With
    `dots` the results of each `Linear` are kept, so that only what is between them, attention
    included, is computed twice. Values and gradients are the same.
    """
    if remat == "none":
        return block
    keep = jax.checkpoint_policies.save_only_these_names(PRODUCT)
    policy = keep if remat == "dots" else jax.checkpoint_policies.nothing_saveable
    graphdef, params = nnx.split(block)
    recomputed = jax.checkpoint(
        lambda params, *inputs: nnx.merge(graphdef, params)(*inputs), policy=policy
    )
    return functools.partial(recomputed, params)


class Encoder(nnx.Module):
    """N encoder blocks, one after the other."""

    def __init__(self, config: BlockConfig, rngs: nnx.Rngs):
        self.blocks = make_blocks(EncoderBlock, config, rngs)
        self.norm = LayerNorm(config) if config.norm_placement == "pre" else None
        self.remat = config.remat

    def __call__(
        self,
        x_BLD: Float[Array, "B L D"],
        mask: Mask | Bool[Array, "#B #H #L #L"] | None = None,
        dropout_key: Key[Array, ""] | None = None,
    ) -> Float[Array, "B L D"]:
        x_BLD, _ = apply_blocks(self.blocks, self.remat, x_BLD, (mask,), dropout_key)
        return x_BLD if self.norm is None else self.norm(x_BLD)


class Decoder(nnx.Module):
    """N decoder blocks, each attending to the encoder's output."""

    def __init__(self, config: BlockConfig, rngs: nnx.Rngs):
        self.blocks = make_blocks(DecoderBlock, config, rngs)
        self.norm = LayerNorm(config) if config.norm_placement == "pre" else None
        self.remat = config.remat

    def __call__(
        self,
        x_BLD: Float[Array, "B L D"],
        memory_BMD: Float[Array, "B M D"] | None,
        mask: Mask | Bool[Array, "#B #H #L #S"] | None = None,
        memory_mask: Mask | Bool[Array, "#B #H #L #M"] | None = None,
        dropout_key: Key[Array, ""] | None = None,
        caches: Sequence[DecoderCache] | None = None,
        positions: Int[Array, "#B L"] | None = None,
    ) -> tuple[Float[Array, "B L D"], list[Any]]:
        """The output, and each block's cache with the tokens added; see `DecoderBlock`."""
        inputs = (memory_BMD, mask, memory_mask)
        x_BLD, caches = apply_blocks(
            self.blocks, self.remat, x_BLD, inputs, dropout_key, caches, positions
        )
        return x_BLD if self.norm is None else self.norm(x_BLD), caches

    def project_kv(self, memory_BMD: Float[Array, "B M D"]) -> list[KVCache]:
        """Each block's keys and values of the encoder's output."""
        return [block.cross_attention.project_kv(memory_BMD) for block in self.blocks]
