"""Bugs planted in the decoder block, in the stacks and in the encoder-decoder."""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.layers import blocks, masks, positions
from jaxformer.layers.blocks import DecoderBlock
from jaxformer.layers.positions import sinusoidal_positions
from jaxformer.layers.stacks import Decoder, Encoder
from jaxformer.models import transformer
from jaxformer.models.transformer import Transformer
from jaxformer.parity.bugs.gpt import other_path, swapped, untied
from jaxformer.parity.engine.cases import Case
from jaxformer.parity.engine.comparison import Proof
from jaxformer.parity.engine.mutation import CASE, Bug, Plant, in_module, method, patched, setting
from jaxformer.parity.proofs import layers
from jaxformer.parity.proofs.transformer import (
    prove_transformer,
    prove_transformer_cache,
    prove_transformer_dropout,
    transformer_case,
)

POST = transformer_case(CASE)
"""Source and target with padding; shared embeddings, norms after the sub-layers."""

PRE = transformer_case(CASE, norm_placement="pre")
SEPARATE = transformer_case(CASE, share_embeddings=False)

CROSS = "decoder.blocks.0.cross_attention"


def inside(path: str, change: Callable[[Any], None]) -> Plant:
    """Changes one module of every encoder-decoder."""
    return in_module(path, change, Transformer)


def sinusoid_in_halves(length: int, width: int) -> np.ndarray:
    angles = np.arange(length)[:, None] * 10_000.0 ** (-np.arange(0, width, 2) / width)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)


def embedded(token_scale: float, position_scale: float) -> Callable[[Any], Any]:
    """Embeddings and positions, each times a power of sqrt(D)."""

    def embed_tokens(
        self: Transformer, embed: Any, tokens: Any, positions: Any, key: Any
    ) -> jax.Array:
        D = self.config.width
        table = jnp.asarray(sinusoidal_positions(self.config.context_length, D), embed.dtype)
        root = math.sqrt(D)
        return root**token_scale * embed(tokens) + root**position_scale * table[positions]

    return lambda _: embed_tokens


def memory_mask(change: Callable[[Any], Any]) -> Callable[[Any], None]:
    """A decoder that changes the mask over the encoder's output."""

    def call(self: Any, x: Any, memory: Any, mask: Any, across: Any, *rest: Any) -> Any:
        return Decoder.__call__(self, x, memory, mask, change(across), *rest)

    return method("__call__", call)


@contextlib.contextmanager
def replaced(module: Any, **others: Any) -> Iterator[None]:
    """Attributes of a module exchanged inside the context."""
    before = {name: getattr(module, name) for name in others}
    try:
        for name, other in others.items():
            object.__setattr__(module, name, other)
        yield
    finally:
        for name, own in before.items():
            object.__setattr__(module, name, own)


def norms_exchanged(self: Any, *args: Any) -> Any:
    first, second = self.self_attention_norm, self.cross_attention_norm
    with replaced(self, self_attention_norm=second, cross_attention_norm=first):
        return DecoderBlock.__call__(self, *args)


def without_cross_residual(self: Any, *args: Any) -> Any:
    attend = self.cross_attention  # in post-norm blocks its query is what the residual adds

    def without_query(x: Any, *rest: Any) -> Any:
        y, cache = attend(x, *rest)
        return y - x, cache

    with replaced(self, cross_attention=without_query):
        return DecoderBlock.__call__(self, *args)


def embeddings_as_memory(self: Any, x: jax.Array, *rest: Any) -> jax.Array:
    Encoder.__call__(self, x, *rest)
    return x


def target_as_memory(self: Any, x: Any, memory: Any, mask: Any, across: Any, *rest: Any) -> Any:
    return DecoderBlock.__call__(self, x, x, mask, None, *rest)


def by_the_targets_matrix(embed_tokens: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, embed, *rest: embed_tokens(self, self.target_embed, *rest)


def not_dropped(name: str) -> Callable[[Any], Any]:
    """A dropout that gets no key."""
    return lambda fold: lambda key, *path: None if name in path else fold(key, *path)


def of_the_next_layer(project_kv: Callable[..., Any]) -> Callable[..., Any]:
    def rolled(self: Decoder, memory: Any) -> list[Any]:
        first, *others = project_kv(self, memory)
        return [*others, first]

    return rolled


def _bug(name: str, layer: str, plant: Plant, proof: Proof, case: Case = POST) -> Bug:
    return Bug(f"Transformer: {name}", layer, plant, proof, case)


_forward = functools.partial(_bug, proof=prove_transformer)
_dropout = functools.partial(_bug, proof=prove_transformer_dropout)
_cache = functools.partial(_bug, layer="cache", proof=prove_transformer_cache)

BUGS = [
    Bug(
        "sinusoid in halves, not interleaved",
        "sinusoidal_positions",
        patched(positions, "sinusoidal_positions", lambda _: sinusoid_in_halves),
        layers.prove_sinusoid,
    ),
    _forward(
        "memory is the embeddings of the source",
        "encoder",
        inside("encoder", method("__call__", embeddings_as_memory)),
    ),
    _forward(
        "cross-attention to the target itself",
        "decoder.blocks.1",
        inside("decoder.blocks.1", method("__call__", target_as_memory)),
    ),
    _forward(
        "encoder mask dropped",
        "encoder.blocks.0.attention",
        inside(
            "encoder",
            method("__call__", lambda self, x, mask, key: Encoder.__call__(self, x, None, key)),
        ),
    ),
    _forward("memory mask dropped", CROSS, inside("decoder", memory_mask(lambda mask: None))),
    _forward("memory mask inverted", CROSS, inside("decoder", memory_mask(lambda mask: ~mask))),
    _forward(
        "target mask not causal",
        "decoder.blocks.0.self_attention",
        patched(masks, "position_mask", lambda f: lambda *a: jnp.ones_like(f(*a))),
    ),
    _forward(
        "target padding ignored",
        "decoder.blocks.0.self_attention",
        patched(transformer, "combine_masks", lambda _: lambda causal, padding: causal),
    ),
    _forward("sqrt(D) missing", "encoder", patched(Transformer, "embed_tokens", embedded(0, 0))),
    _forward(
        "sqrt(D) on positions too", "encoder", patched(Transformer, "embed_tokens", embedded(1, 1))
    ),
    _forward(
        "sinusoids in halves",
        "encoder",
        patched(transformer, "sinusoidal_positions", lambda _: sinusoid_in_halves),
    ),
    _forward(
        "post-norm block as pre-norm",
        "decoder.blocks.1",
        inside("decoder.blocks.1", setting("norm_placement", "pre")),
    ),
    _forward(
        "norms after each other's sub-layers",
        "decoder.blocks.1",
        inside("decoder.blocks.1", method("__call__", norms_exchanged)),
    ),
    _forward(
        "query and key of cross-attention swapped", CROSS, inside(CROSS, swapped("query", "key"))
    ),
    _forward(
        "residual of cross-attention missing",
        "decoder.blocks.0",
        inside("decoder.blocks.0", method("__call__", without_cross_residual)),
    ),
    _forward(
        "no gradient into the encoder",
        "encoder",
        inside(
            "encoder",
            method("__call__", lambda self, *a: jax.lax.stop_gradient(Encoder.__call__(self, *a))),
        ),
        case=SEPARATE,
    ),
    _forward(
        "final norm of the pre-norm encoder missing",
        "encoder.norm",
        inside("encoder.norm", method("__call__", lambda self, x: x)),
        case=PRE,
    ),
    _forward(
        "source embedded by the target's matrix",
        "source_embed",
        patched(Transformer, "embed_tokens", by_the_targets_matrix),
        case=SEPARATE,
    ),
    _forward("output untied", "embed", patched(Transformer, "logits", lambda _: untied)),
    _dropout(
        "source embedding not dropped",
        "encoder",
        patched(transformer, "fold_path", not_dropped("source_embedding_dropout")),
    ),
    _dropout(
        "one dropout mask for source and target",
        "decoder",
        patched(
            transformer,
            "fold_path",
            other_path("target_embedding_dropout", "source_embedding_dropout"),
        ),
        case=dataclasses.replace(POST, memory=POST.length),
    ),
    _dropout(
        "one dropout mask for both attentions",
        "decoder.blocks.0",
        patched(
            blocks, "fold_path", other_path("cross_attention_dropout", "self_attention_dropout")
        ),
    ),
    _dropout(
        "attention weights dropped against the config",
        CROSS,
        inside(CROSS, setting("dropout_rate", 0.2)),
    ),
    _cache(
        "memory cached of the next layer", plant=patched(Decoder, "project_kv", of_the_next_layer)
    ),
    _cache(
        "memory mask dropped while decoding",
        plant=inside("decoder", memory_mask(lambda mask: None)),
    ),
    _cache(
        "positions restarted in each piece",
        plant=patched(
            Transformer,
            "embed_tokens",
            lambda f: (
                lambda self, embed, tokens, at, key: f(
                    self, embed, tokens, jnp.arange(tokens.shape[1]), key
                )
            ),
        ),
    ),
]
