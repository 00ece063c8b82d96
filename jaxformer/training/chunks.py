"""A loss computed from hidden states, a chunk of the tokens at a time.

The float32 logits of all tokens, (B, L, V), would be the largest array of a step with a large
vocabulary. Losses are sums over tokens, so the tokens can be cut anywhere, and the gradient of a
chunk needs nothing of the others. Forwards, each chunk gives its loss and the gradients of its
hidden states and of the output head; then its logits are forgotten. Backwards, these gradients are
multiplied by that of the sum. No product is computed twice, unlike with `jax.checkpoint`, and only
one chunk's logits exist at a time (as in Liger Kernel, Hsu et al. 2024, FusedLinearCrossEntropy).
This has only reverse-mode derivatives.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from jaxformer.training.loss import SumAndCount

LARGEST_CHUNK = 2**27
"""Logits of a chunk, 256 MiB in bfloat16."""
MOST_CHUNKS = 16
"""However large the batch, so that the chunks of its shards on many devices stay large enough."""


def in_chunks(
    loss: Callable[..., SumAndCount],
    logits: Callable[[Float[Array, "B L D"]], Float[Array, "B L V"]],
    hidden_BLD: Float[Array, "B L D"],
    targets_BL: Int[Array, "B L"],
    mask_BL: Bool[Array, "B L"],
    *options: Any,
) -> SumAndCount:
    """loss(logits(hidden), targets, mask, *options), a sum over tokens, and its gradients.

    Up to `LARGEST_CHUNK` logits are one chunk, which is the plain computation. More are cut along
    the length, so that a mesh keeps the rows where they are. `logits` maps each token by itself;
    the arrays that it closes over have gradients too.
    """
    L = targets_BL.shape[1]
    length = chunk_length(*jax.eval_shape(logits, hidden_BLD).shape)
    if length == L:
        return loss(logits(hidden_BLD), targets_BL, mask_BL, *options)
    chunks = tuple(cut(x, length) for x in (hidden_BLD, targets_BL, mask_BL))
    # A function of its own for each call: `closure_convert` keeps what it has seen.
    head, weights = jax.closure_convert(lambda hidden: logits(hidden), chunks[0][0])

    def chunk_loss(weights: list[Array], hidden: Array, targets: Array, mask: Array) -> SumAndCount:
        return loss(head(hidden, *weights), targets, mask, *options)

    return _summed(chunk_loss, weights, chunks)


def chunk_length(B: int, L: int, V: int) -> int:
    """Tokens of each row in a chunk: L halved until the chunk is small or their number large."""
    chunks = 1
    while chunks < min(MOST_CHUNKS, L) and chunks * LARGEST_CHUNK < B * L * V:
        chunks *= 2
    return -(-L // chunks)


def cut(x_BL: Array, length: int) -> Array:
    """(B, L, ...) as chunks (C, B, length, ...); zeros fill the last one, and no mask is True."""
    B, L, *rest = x_BL.shape
    C = -(-L // length)
    filled = jnp.pad(x_BL, [(0, 0), (0, C * length - L), *((0, 0) for _ in rest)])
    return filled.reshape(B, C, length, *rest).swapaxes(0, 1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _summed(chunk_loss: Callable[..., SumAndCount], weights: PyTree, chunks: tuple) -> SumAndCount:
    losses, counts = jax.lax.map(lambda chunk: chunk_loss(weights, *chunk), chunks)
    return _total(losses, counts)


def _forward(
    chunk_loss: Callable[..., SumAndCount], weights: PyTree, chunks: tuple
) -> tuple[SumAndCount, tuple[PyTree, Array]]:
    value_and_grad = jax.value_and_grad(chunk_loss, (0, 1), has_aux=True)

    def add_chunk(grads: PyTree, chunk: tuple) -> tuple[PyTree, tuple]:
        (loss, count), (more, hidden_grad) = value_and_grad(weights, *chunk)
        return add_grads(grads, more), (loss, count, hidden_grad)

    zeros = jax.tree.map(jnp.zeros_like, weights)
    weight_grads, (losses, counts, hidden_grads) = jax.lax.scan(add_chunk, zeros, chunks)
    return _total(losses, counts), (weight_grads, hidden_grads)


def _backward(
    _: Callable[..., SumAndCount], grads: tuple[PyTree, Array], of_sums: tuple[Array, Any]
) -> tuple[PyTree, tuple]:
    weight_grads, hidden_grads = jax.tree.map(lambda g: g * of_sums[0].astype(g.dtype), grads)
    return weight_grads, (hidden_grads, None, None)


_summed.defvjp(_forward, _backward)


def _total(losses_C: Array, counts_C: Array) -> SumAndCount:
    return losses_C.sum(), counts_C.sum(dtype=counts_C.dtype)


def add_grads(grads: PyTree, more: PyTree) -> PyTree:
    """Leaf by leaf."""
    return jax.tree.map(jnp.add, grads, more)
