"""Bugs planted in BERT: its embeddings, its head, its masks and its objective."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxformer.layers.embedding import Embedding
from jaxformer.layers.masks import causal_mask
from jaxformer.models import bert
from jaxformer.models.bert import Bert
from jaxformer.parity.engine.comparison import Proof
from jaxformer.parity.engine.mutation import (
    CASE,
    SMALL,
    Bug,
    Plant,
    batch_changed,
    in_module,
    method,
    patched,
    setting,
)
from jaxformer.parity.proofs.bert import bert_case, prove_bert, prove_bert_dropout
from jaxformer.parity.proofs.training import prove_objective
from jaxformer.training import objectives


def in_bert(path: str, change: Callable[[Any], None]) -> Plant:
    """Changes one module of every BERT."""
    return in_module(path, change, Bert)


def left_out(module: Any, x: jax.Array) -> jax.Array:
    return x


def no_segments(module: Any, segments: jax.Array) -> jax.Array:
    return jnp.zeros_like(Embedding.__call__(module, segments))


def segments_of_another_text(module: Any, segments: jax.Array) -> jax.Array:
    return Embedding.__call__(module, jnp.roll(segments, 1, axis=0))


def segments_counted_from_one(module: Any, segments: jax.Array) -> jax.Array:
    return Embedding.__call__(module, jnp.minimum(segments + 1, module.embedding.shape[0] - 1))


def norm_before_the_sum(self: Bert, tokens: jax.Array, segments: jax.Array) -> jax.Array:
    positions = self.positions(jnp.arange(tokens.shape[1]))
    return self.embedding_norm(self.embed(tokens)) + positions + self.segments(segments)


def untied(self: Bert, hidden: jax.Array) -> jax.Array:
    return hidden @ jax.lax.stop_gradient(self.embed.embedding[...]).T + self.head.bias[...]


def biases_of_the_next_token(self: Bert, hidden: jax.Array) -> jax.Array:
    return self.embed.attend(hidden) + jnp.roll(self.head.bias[...], 1)


def masked_token_of(change: Callable[[Any], Any]) -> Plant:
    """The objective of another batch."""
    return patched(objectives, "masked_token", batch_changed(change))


PADDED = dataclasses.replace(bert_case(CASE), masks=("padding", "segments"))
"""Texts of several segments, with padding."""


def _bug(name: str, layer: str, plant: Plant, proof: Proof = prove_bert) -> Bug:
    return Bug(f"BERT: {name}", layer, plant, proof, PADDED)


BUGS = [
    _bug(
        "segment embedding missing",
        "segments",
        in_bert("segments", method("__call__", no_segments)),
    ),
    _bug(
        "segments of another row",
        "segments",
        in_bert("segments", method("__call__", segments_of_another_text)),
    ),
    _bug(
        "segments counted from one",
        "segments",
        in_bert("segments", method("__call__", segments_counted_from_one)),
    ),
    _bug(
        "norm before the sum of the embeddings",
        "embedding_norm",
        patched(Bert, "embeddings", lambda _: norm_before_the_sum),
    ),
    _bug(
        "no norm after the embeddings",
        "embedding_norm",
        in_bert("embedding_norm", method("__call__", left_out)),
    ),
    _bug(
        "PyTorch's epsilon of 1e-5",
        "embedding_norm",
        in_bert("embedding_norm", setting("epsilon", 1e-5)),
    ),
    _bug(
        "embeddings not dropped",
        "encoder",
        patched(bert, "dropout", lambda _: lambda x, rate, key: x),
        prove_bert_dropout,
    ),
    _bug(
        "padding ignored",
        "encoder.blocks.0.attention",
        patched(bert, "padding_mask", lambda f: lambda valid: f(jnp.ones_like(valid))),
    ),
    _bug(
        "causal mask besides the padding",
        "encoder.blocks.0.attention",
        patched(
            bert, "padding_mask", lambda f: lambda valid: f(valid) & causal_mask(valid.shape[1])
        ),
    ),
    _bug(
        "pre-norm block",
        "encoder.blocks.1",
        in_bert("encoder.blocks.1", setting("norm_placement", "pre")),
    ),
    _bug("tanh GELU in the head", "head", in_bert("head", setting("activation", "gelu_tanh"))),
    _bug("head without its norm", "head.norm", in_bert("head.norm", method("__call__", left_out))),
    _bug(
        "logits without a bias",
        "output",
        patched(Bert, "logits", lambda _: lambda self, x: self.embed.attend(x)),
    ),
    _bug(
        "logits with the bias of the next token",
        "output",
        patched(Bert, "logits", lambda _: biases_of_the_next_token),
    ),
    _bug("decoder untied from the embedding", "embed", patched(Bert, "logits", lambda _: untied)),
    Bug(
        "loss of every token, not of the masked ones",
        "masked_token",
        masked_token_of(lambda batch: batch._replace(mask=batch.valid)),
        prove_objective,
        bert_case(SMALL),
    ),
    Bug(
        "masked tokens there to be read",
        "masked_token",
        masked_token_of(lambda batch: batch._replace(tokens=batch.targets)),
        prove_objective,
        bert_case(SMALL),
    ),
]
