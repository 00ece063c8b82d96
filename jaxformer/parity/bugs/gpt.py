"""Bugs planted in GPT."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxformer.layers import attention, blocks, masks, positions
from jaxformer.layers.linear import Linear
from jaxformer.models import gpt
from jaxformer.models.gpt import GPT
from jaxformer.parity.bugs.layers import not_rescaled
from jaxformer.parity.engine.mutation import Bug, Plant, in_module, method, patched, setting
from jaxformer.parity.proofs.gpt import prove_gpt, prove_gpt_dropout


def scores_scaled(factor: Callable[[jax.Array], float]) -> Plant:
    """Attention whose scores are multiplied by a further factor."""

    def make(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda q, *rest: function(q * factor(q), *rest)

    return patched(attention, "attention", make)


def swapped(one: str, other: str) -> Callable[[Any], None]:
    """Two projections of an attention in each other's place."""

    def call(self: Any, *args: Any) -> Any:
        first, second = getattr(self, one), getattr(self, other)
        setattr(self, one, second)
        setattr(self, other, first)
        try:
            return attention.MultiHeadAttention.__call__(self, *args)
        finally:
            setattr(self, one, first)
            setattr(self, other, second)

    return method("__call__", call)


def softmax_in_float32(scores: jax.Array, axis: int) -> jax.Array:
    e = jnp.exp((scores - scores.max(axis, keepdims=True)).astype(jnp.float32))
    return (e / e.sum(axis, keepdims=True)).astype(scores.dtype)


def softmax_over_queries(scores: jax.Array, axis: int) -> jax.Array:
    e = jnp.exp(scores - scores.max(-2, keepdims=True))
    return e / e.sum(-2, keepdims=True)


def heads_strided(self: Any, x: jax.Array) -> jax.Array:
    B, L, D = x.shape
    return x.reshape(B, L, D // self.num_heads, self.num_heads).swapaxes(-1, -2)


def residual_removed(self: Any, x: jax.Array, *rest: Any) -> Any:
    y, cache = blocks.EncoderBlock.__call__(self, x, *rest)
    return y - x, cache


def other_path(old: str, new: str) -> Callable[[Any], Any]:
    """A dropout that takes the mask of another's path."""
    return lambda fold: lambda key, *path: fold(key, *(new if p == old else p for p in path))


def untied(self: GPT, hidden: jax.Array) -> jax.Array:
    return hidden @ jax.lax.stop_gradient(self.embed.embedding[...]).T


BUGS = [
    Bug(
        "LayerNorm with epsilon 1e-6",
        "blocks.0.mlp_norm",
        in_module("blocks.0.mlp_norm", setting("epsilon", 1e-6)),
        prove_gpt,
    ),
    Bug(
        "exact GELU for the tanh form",
        "blocks.1.mlp",
        in_module("blocks.1.mlp", setting("activation", "gelu")),
        prove_gpt,
    ),
    Bug(
        "mask inverted",
        "blocks.0.attention",
        patched(masks, "position_mask", lambda f: lambda q, k: ~f(q, k)),
        prove_gpt,
    ),
    Bug(
        "causal mask sees one ahead",
        "blocks.0.attention",
        patched(masks, "position_mask", lambda f: lambda q, k: f(q + 1, k)),
        prove_gpt,
    ),
    Bug(
        "causal mask hides the token itself",
        "blocks.0.attention",
        patched(masks, "position_mask", lambda f: lambda q, k: f(q - 1, k)),
        prove_gpt,
    ),
    Bug(
        "padding mask ignored",
        "blocks.0.attention",
        patched(gpt, "combine_masks", lambda _: lambda causal, padding: causal),
        prove_gpt,
    ),
    Bug(
        "scores not divided by sqrt(K)",
        "blocks.0.attention",
        scores_scaled(lambda q: math.sqrt(q.shape[-1])),
        prove_gpt,
    ),
    Bug(
        "scores divided by sqrt(D)",
        "blocks.0.attention",
        scores_scaled(lambda q: 1 / math.sqrt(q.shape[-2])),
        prove_gpt,
    ),
    Bug(
        "softmax over the queries",
        "blocks.0.attention",
        patched(jax.nn, "softmax", lambda _: softmax_over_queries),
        prove_gpt,
    ),
    Bug(
        "softmax in float32 in a float64 model",
        "blocks.0.attention",
        patched(jax.nn, "softmax", lambda _: softmax_in_float32),
        prove_gpt,
    ),
    Bug(
        "kernel transposed",
        "blocks.0.attention.out",
        in_module(
            "blocks.0.attention.out",
            method("__call__", lambda self, x: x @ self.kernel[...].T + self.bias[...]),
        ),
        prove_gpt,
    ),
    Bug(
        "query and key swapped",
        "blocks.1.attention",
        in_module("blocks.1.attention", swapped("query", "key")),
        prove_gpt,
    ),
    Bug(
        "key and value swapped",
        "blocks.1.attention",
        in_module("blocks.1.attention", swapped("key", "value")),
        prove_gpt,
    ),
    Bug(
        "heads split in another order",
        "blocks.1.attention",
        in_module("blocks.1.attention", method("split_heads", heads_strided)),
        prove_gpt,
    ),
    Bug(
        "bias missing",
        "blocks.1.mlp.up",
        in_module(
            "blocks.1.mlp.up",
            method("__call__", lambda self, x: Linear.__call__(self, x) - self.bias[...]),
        ),
        prove_gpt,
    ),
    Bug(
        "gradient stopped at the key",
        "blocks.1.attention.key",
        in_module(
            "blocks.1.attention.key",
            method("__call__", lambda self, x: jax.lax.stop_gradient(Linear.__call__(self, x))),
        ),
        prove_gpt,
    ),
    Bug(
        "positions off by one",
        "positions",
        in_module(
            "positions",
            method("__call__", lambda self, p: positions.LearnedPositions.__call__(self, p + 1)),
        ),
        prove_gpt,
    ),
    Bug(
        "embedding untied from the logits",
        "embed",
        patched(GPT, "logits", lambda _: untied),
        prove_gpt,
    ),
    Bug(
        "logits of the next row of the embedding",
        "output",
        patched(GPT, "logits", lambda f: lambda self, x: jnp.roll(f(self, x), 1, -1)),
        prove_gpt,
    ),
    Bug(
        "final norm missing",
        "norm",
        in_module("norm", method("__call__", lambda self, x: x)),
        prove_gpt,
    ),
    Bug(
        "post-norm block as pre-norm",
        "blocks.1",
        in_module("blocks.1", setting("norm_placement", "post")),
        prove_gpt,
    ),
    Bug(
        "residual missing",
        "blocks.1",
        in_module(
            "blocks.1",
            method("__call__", residual_removed),
        ),
        prove_gpt,
    ),
    Bug(
        "dropout not rescaled",
        "blocks.0",
        patched(blocks, "dropout", lambda _: not_rescaled),
        prove_gpt_dropout,
    ),
    Bug(
        "dropout mask of another path",
        "blocks.0.attention",
        patched(attention, "fold_path", other_path("weights", "output")),
        prove_gpt_dropout,
    ),
    Bug(
        "one dropout mask for both sub-layers",
        "blocks.0",
        patched(blocks, "fold_path", other_path("mlp_dropout", "attention_dropout")),
        prove_gpt_dropout,
    ),
    Bug(
        "embeddings not dropped",
        "blocks.0",
        patched(gpt, "dropout", lambda _: lambda x, rate, key: x),
        prove_gpt_dropout,
    ),
]
