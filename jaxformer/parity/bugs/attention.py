"""Bugs planted in the implementations of attention by blocks and by cuDNN's kernels."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.layers import attention
from jaxformer.layers import blockwise_attention as blockwise
from jaxformer.layers import flash_attention as flash
from jaxformer.layers.masks import Mask
from jaxformer.parity.engine.cases import Case
from jaxformer.parity.engine.mutation import CASE, Bug, Plant, patched
from jaxformer.parity.proofs.layers import (
    prove_blockwise_attention,
    prove_flash_attention,
    prove_query_blocks_attention,
)

CAUSAL = dataclasses.replace(CASE, masks=("causal",))
NOTHING = dataclasses.replace(CASE, masks=("nothing",))
ACROSS = dataclasses.replace(CASE, masks=())
"""More queries than keys, of which neither is a multiple of the block."""


def not_rescaled(_: Any) -> Callable[..., Any]:
    """Sums of earlier blocks stay relative to the maximum of then."""

    def step(so_far: Any, scores: Any, allowed: Any, v: Any) -> Any:
        scores = jnp.where(allowed, scores, jnp.finfo(scores.dtype).min)
        maximum = jnp.maximum(so_far.maximum, scores.max(axis=-1, keepdims=True))
        weights = jnp.where(allowed, jnp.exp(scores - maximum), 0.0)
        total = so_far.normaliser + weights.sum(axis=-1, keepdims=True)
        return blockwise.Softmax(maximum, total, so_far.output + weights @ v)

    return step


def of_the_mask(**parts: Any) -> Callable[[Any], Any]:
    """A function of a mask that gets one with other parts."""

    def make(function: Any) -> Any:
        return lambda mask, *rest: function(dataclasses.replace(mask, **parts), *rest)

    return make


def beyond_the_keys(function: Any) -> Any:
    """The zeros that fill the last block are attended to."""

    def attend(mask: Mask, i: Any, j: Any, block: int) -> Any:
        longer = jnp.where(mask.lengths_B == CASE.memory, CASE.memory + 1, mask.lengths_B)
        return function(dataclasses.replace(mask, lengths_B=longer), i, j, block)

    return attend


def of_length_one(function: Any) -> Any:
    """Rows without keys left as they are computed."""

    def attend(q: Any, k: Any, v: Any, mask: Mask, **kernel: Any) -> Any:
        lengths = jnp.maximum(mask.lengths_B, 1)
        return function(q, k, v, dataclasses.replace(mask, lengths_B=lengths), **kernel)

    return attend


def by_jax(**changes: Any) -> Plant:
    """jax's function called with other arguments."""

    def make(function: Any) -> Any:
        return lambda *arrays, **named: function(*arrays, **named | changes)

    return patched(jax.nn, "dot_product_attention", make)


def _blockwise(name: str, plant: Plant, case: Case = CASE) -> Bug:
    name = f"blockwise: {name}"
    return Bug(name, "blockwise_attention", plant, prove_blockwise_attention, case)


def last_key_unseen(function: Any) -> Any:
    """Each block of queries reads the keys before its end but the last."""

    def attend(q: Any, k: Any, v: Any, allowed: Any, cap: Any) -> Any:
        return function(q, k[:, :, :-1], v[:, :, :-1], allowed[..., :-1], cap)

    return attend


def up_to_the_start(function: Any) -> Any:
    """Each query sees the keys up to the start of its block."""

    def attend(q: Any, k: Any, v: Any, allowed: Any, cap: Any) -> Any:
        L, M = allowed.shape[2:]
        return function(q, k, v, allowed & (jnp.arange(M) <= M - L), cap)

    return attend


def _query_blocks(name: str, make: Any) -> Bug:
    plant, proof = patched(attention, "_attend", make), prove_query_blocks_attention
    return Bug(f"query blocks: {name}", "query_blocks_attention", plant, proof, CAUSAL)


def _flash(name: str, plant: Plant, case: Case = CASE) -> Bug:
    case = dataclasses.replace(case, dtype="float32")
    return Bug(f"flash: {name}", "flash_attention", plant, prove_flash_attention, case)


BUGS = [
    _blockwise("maximum not rescaled", patched(blockwise, "online_softmax", not_rescaled), ACROSS),
    _blockwise(
        "keys of the next block",
        patched(blockwise, "may_attend", lambda f: lambda m, i, j, b: f(m, i, j + 1, b)),
        CAUSAL,
    ),
    _blockwise("last block not masked", patched(blockwise, "may_attend", beyond_the_keys), ACROSS),
    _blockwise(
        "gradient without delta",
        patched(blockwise, "scores_gradient", lambda f: lambda p, dp, delta: p * dp),
        ACROSS,
    ),
    _blockwise(
        "block on the diagonal skipped",
        patched(blockwise, "end_of_keys", lambda f: lambda m, i, n: jnp.maximum(f(m, i, n) - 1, 1)),
        CAUSAL,
    ),
    _blockwise(
        "gradient of the block on the diagonal skipped",
        patched(blockwise, "start_of_queries", lambda f: lambda m, j: f(m, j) + 1),
        CAUSAL,
    ),
    _blockwise(
        "causal from another block",
        patched(blockwise, "may_attend", lambda f: lambda m, i, j, b: f(m, i - 1, j, b)),
        CAUSAL,
    ),
    _blockwise("not causal", patched(blockwise, "may_attend", of_the_mask(causal=False)), CAUSAL),
    _blockwise(
        "lengths ignored",
        patched(blockwise, "may_attend", of_the_mask(lengths_B=np.full(1, CASE.memory))),
    ),
    _blockwise(
        "scores not divided by sqrt(K)",
        patched(blockwise, "block_scores", lambda f: lambda q, k: f(q * q.shape[-1] ** 0.5, k)),
        ACROSS,
    ),
    _query_blocks("last key unseen", last_key_unseen),
    _query_blocks("keys up to the start of a block", up_to_the_start),
    _flash("not causal", by_jax(is_causal=False), CAUSAL),
    _flash("lengths ignored", by_jax(key_value_seq_lengths=None)),
    _flash("scores divided by K", by_jax(scale=1 / CASE.config.head_width), ACROSS),
    _flash(
        "row without keys is the first value",
        patched(flash, "flash_attention", of_length_one),
        NOTHING,
    ),
]
