"""Attention by blocks of queries and keys, which never has an array of L x M.

The forward pass reads the keys block by block, with a running maximum, normaliser and output of
each query: the online softmax (Milakov & Gimelshein 2018; Rabe & Staats 2021). It saves the
log-sum-exp of each query, from which the backward pass recomputes the weights block by block (Dao
et al. 2022, algorithms 1 and 4). Under a causal mask, blocks of the future are skipped. Memory is
O(L + M).
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxformer.layers.masks import Mask, as_mask
from jaxformer.layers.precision import reduction_dtype
from jaxformer.layers.soft_cap import soft_cap, soft_cap_slope

BLOCK = 128
"""Queries and keys of a block."""


class Softmax(NamedTuple):
    """What is known of a block of l queries after some of its keys, float32 or wider."""

    maximum: Float[Array, "B H l 1"]
    """m, the largest score."""
    normaliser: Float[Array, "B H l 1"]
    """sum of exp(score - m)."""
    output: Float[Array, "B H l K"]
    """sum of exp(score - m) v."""


def blockwise_attention(
    q_BLHK: Float[Array, "B L H K"],
    k_BMGK: Float[Array, "B M G K"],
    v_BMGK: Float[Array, "B M G K"],
    mask: Mask | Bool[Array, "#B #H #L #M"] | None = None,
    cap: float | None = None,
    block: int | None = None,
) -> Float[Array, "B L H K"]:
    """softmax(q k^T / sqrt(K)) v, as `attention` without dropout, and without its weights.

    Args:
        q_BLHK: the queries.
        k_BMGK: the keys; of fewer heads, each is copied for its group of queries.
        v_BMGK: the values.
        mask: a dense array is read block by block.
        cap: of the scores, see `soft_cap`.
        block: queries and keys of a block, by default `BLOCK`.

    Raises:
        UserError: for a mask that is not boolean.
    """
    L, M = q_BLHK.shape[1], k_BMGK.shape[1]
    block = min(block or BLOCK, max(L, M))
    group = q_BLHK.shape[2] // k_BMGK.shape[2]
    k_BMHK, v_BMHK = (jnp.repeat(x, group, axis=2) for x in (k_BMGK, v_BMGK))
    heads_first = [_padded(x.swapaxes(1, 2), 2, block) for x in (q_BLHK, k_BMHK, v_BMHK)]
    out_BHLK = _attend(block, cap, *heads_first, _padded_mask(mask, M, block))
    return out_BHLK[:, :, :L].swapaxes(1, 2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(
    block: int,
    cap: float | None,
    q_BHLK: Float[Array, "B H L K"],
    k_BHMK: Float[Array, "B H M K"],
    v_BHMK: Float[Array, "B H M K"],
    mask: Mask,
) -> Float[Array, "B H L K"]:
    return _forward(block, cap, q_BHLK, k_BHMK, v_BHMK, mask)[0]


def _forward(
    block: int, cap: float | None, q: Array, k: Array, v: Array, mask: Mask
) -> tuple[Array, Any]:
    """The output, and what the backward pass needs."""
    num_queries, num_keys = q.shape[2] // block, k.shape[2] // block

    def of_queries(i: Array) -> tuple[Array, Array]:
        q_i = take_block(q, i, block)

        def of_keys(j: Array, so_far: Softmax) -> Softmax:
            scores = soft_cap(block_scores(q_i, take_block(k, j, block)), cap)
            return online_softmax(
                so_far, scores, may_attend(mask, i, j, block), take_block(v, j, block)
            )

        zero = jnp.zeros((*q_i.shape[:3], 1), reduction_dtype(q.dtype))
        start = Softmax(zero + jnp.finfo(zero.dtype).min, zero, zero * q_i)
        keys = start_of_keys(mask, i, block), end_of_keys(mask, i, num_keys)
        seen = lax.fori_loop(*keys, of_keys, start)
        # A query without any key has normaliser 0: its output is 0.
        normaliser = jnp.where(seen.normaliser > 0, seen.normaliser, 1.0)
        return (seen.output / normaliser).astype(q.dtype), seen.maximum + jnp.log(normaliser)

    out, log_sum_exp = map(_joined, lax.map(of_queries, jnp.arange(num_queries)))
    return out, (q, k, v, mask, out, log_sum_exp)


def _backward(
    block: int, cap: float | None, saved: Any, d_out: Array
) -> tuple[Array, Array, Array, None]:
    q, k, v, mask, out, log_sum_exp = saved
    num_queries, num_keys = q.shape[2] // block, k.shape[2] // block
    wide = reduction_dtype(q.dtype)
    delta = (d_out.astype(wide) * out).sum(axis=-1, keepdims=True)
    product = functools.partial(jnp.einsum, preferred_element_type=wide)

    def of_keys(d_q: Array, j: Array) -> tuple[Array, tuple[Array, Array]]:
        k_j, v_j = take_block(k, j, block), take_block(v, j, block)

        def of_queries(i: Array, so_far: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            d_q, d_k, d_v = so_far
            q_i, d_out_i, delta_i, log_sum_exp_i, d_q_i = (
                take_block(x, i, block) for x in (q, d_out, delta, log_sum_exp, d_q)
            )
            allowed = may_attend(mask, i, j, block)
            scores = soft_cap(block_scores(q_i, k_j), cap)
            weights = jnp.where(allowed, jnp.exp(scores - log_sum_exp_i), 0.0)
            d_weights = product("BHLK,BHMK->BHLM", d_out_i, v_j)
            d_scores = scores_gradient(weights, d_weights, delta_i) * soft_cap_slope(scores, cap)
            d_scores = d_scores.astype(q.dtype)
            d_v += product("BHLM,BHLK->BHMK", weights.astype(v.dtype), d_out_i)
            d_k += product("BHLM,BHLK->BHMK", d_scores, q_i)
            d_q_i += product("BHLM,BHMK->BHLK", d_scores, k_j)
            return lax.dynamic_update_slice_in_dim(d_q, d_q_i, i * block, 2), d_k, d_v

        zero = jnp.zeros(k_j.shape, wide)
        queries = start_of_queries(mask, j), end_of_queries(mask, j, num_queries, block)
        d_q, *d_kv = lax.fori_loop(*queries, of_queries, (d_q, zero, zero))
        return d_q, tuple(d_kv)

    d_q, d_kv = lax.scan(of_keys, jnp.zeros(q.shape, wide), jnp.arange(num_keys))
    d_k, d_v = map(_joined, d_kv)
    scale = 1 / math.sqrt(q.shape[-1])
    return (d_q * scale).astype(q.dtype), (d_k * scale).astype(k.dtype), d_v.astype(v.dtype), None


_attend.defvjp(_forward, _backward)


def online_softmax(
    so_far: Softmax,
    scores: Float[Array, "B H l m"],
    allowed: Bool[Array, "#B #H #l #m"],
    v: Float[Array, "B H m K"],
) -> Softmax:
    """The softmax after one more block of keys: what was summed is rescaled to the new maximum."""
    scores = jnp.where(allowed, scores, jnp.finfo(scores.dtype).min)
    maximum = jnp.maximum(so_far.maximum, scores.max(axis=-1, keepdims=True))
    weights = jnp.where(allowed, jnp.exp(scores - maximum), 0.0)
    rescale = jnp.exp(so_far.maximum - maximum)
    added = jnp.einsum(
        "BHLM,BHMK->BHLK", weights.astype(v.dtype), v, preferred_element_type=scores.dtype
    )
    return Softmax(
        maximum,
        so_far.normaliser * rescale + weights.sum(axis=-1, keepdims=True),
        so_far.output * rescale + added,
    )


def scores_gradient(weights: Array, d_weights: Array, delta: Array) -> Array:
    """The gradient of the softmax: p (dp - sum of p dp), where the sum is delta = do . o."""
    return weights * (d_weights - delta)


def block_scores(q: Float[Array, "B H l K"], k: Float[Array, "B H m K"]) -> Float[Array, "B H l m"]:
    """q k^T / sqrt(K) in float32 or wider."""
    scores = jnp.einsum("BHLK,BHMK->BHLM", q, k, preferred_element_type=reduction_dtype(q.dtype))
    return scores / math.sqrt(q.shape[-1])


def may_attend(
    mask: Mask, i: Int[Array, ""], j: Int[Array, ""], block: int
) -> Bool[Array, "#B #H l m"]:
    """The mask of query block i and key block j."""
    queries, keys = (b * block + jnp.arange(block) for b in (i, j))
    allowed = keys < mask.lengths_B[:, None, None, None]
    if mask.causal:
        allowed &= keys <= queries[:, None]
    if mask.window is not None:
        allowed &= keys > queries[:, None] - mask.window
    if mask.dense_BHLM is not None:
        allowed &= take_block(take_block(mask.dense_BHLM, i, block), j, block, axis=3)
    return jnp.broadcast_to(allowed, (*allowed.shape[:2], block, block))


def end_of_keys(mask: Mask, i: Int[Array, ""], num_keys: int) -> Int[Array, ""] | int:
    """The first key block that no query of block i sees, nor any that follows it."""
    return jnp.minimum(i + 1, num_keys) if mask.causal else num_keys


def start_of_keys(mask: Mask, i: Int[Array, ""], block: int) -> Int[Array, ""] | int:
    """The first key block that a query of block i sees."""
    return 0 if mask.window is None else jnp.maximum(i * block + 1 - mask.window, 0) // block


def start_of_queries(mask: Mask, j: Int[Array, ""]) -> Int[Array, ""] | int:
    """The first query block that sees a key of block j."""
    return j if mask.causal else 0


def end_of_queries(
    mask: Mask, j: Int[Array, ""], num_queries: int, block: int
) -> Int[Array, ""] | int:
    """The first query block that sees no key of block j, nor does any that follows it."""
    if mask.window is None:
        return num_queries
    last = (j + 1) * block - 1 + mask.window - 1  # the last query that sees the block's last key
    return jnp.minimum(last // block + 1, num_queries)


def take_block(x: Array, index: Int[Array, ""], block: int, axis: int = 2) -> Array:
    """A block of an axis; all of one that is broadcast."""
    if x.shape[axis] == 1:
        return x
    return lax.dynamic_slice_in_dim(x, index * block, block, axis)


def _padded(x: Array, axis: int, block: int) -> Array:
    """Zeros after the end of an axis, up to whole blocks."""
    pad = [(0, 0)] * x.ndim
    pad[axis] = (0, -x.shape[axis] % block)
    return jnp.pad(x, pad)


def _padded_mask(mask: Mask | Array | None, keys: int, block: int) -> Mask:
    """The mask over whole blocks; what follows the keys is beyond the length of each row."""
    mask = as_mask(mask)
    lengths = jnp.full(1, keys) if mask.lengths_B is None else jnp.minimum(mask.lengths_B, keys)
    dense = mask.dense_BHLM
    if dense is not None:
        for axis in (2, 3):
            dense = dense if dense.shape[axis] == 1 else _padded(dense, axis, block)
    return Mask(mask.causal, lengths, dense, mask.window)


def _joined(blocks: Float[Array, "n B H l K"]) -> Float[Array, "B H L K"]:
    """The blocks of an axis, one after the other."""
    n, B, H, block, K = blocks.shape
    return jnp.moveaxis(blocks, 0, 2).reshape(B, H, n * block, K)
