"""Bugs planted in the layers of today's decoders and in the whole model."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.decoding import generate
from jaxformer.layers import (
    attention,
    blocks,
    blockwise_attention,
    grouped_attention,
    masks,
    mlp,
    norms,
    rotary,
    soft_cap,
)
from jaxformer.layers.grouped_attention import GroupedQueryAttention
from jaxformer.models import decoder
from jaxformer.models.decoder import Decoder
from jaxformer.parity.bugs.attention import by_jax, of_the_mask
from jaxformer.parity.bugs.decoding import late, one_token_short
from jaxformer.parity.bugs.gpt import untied
from jaxformer.parity.bugs.layers import not_rescaled
from jaxformer.parity.engine.cases import Case
from jaxformer.parity.engine.comparison import Proof
from jaxformer.parity.engine.mutation import CASE, Bug, Plant, in_module, patched, setting
from jaxformer.parity.proofs import decoder_layers as layers
from jaxformer.parity.proofs.decoder import (
    GEMMA2,
    MISTRAL,
    QWEN3,
    prove_decoder,
    prove_decoder_cache,
    prove_decoder_dropout,
    prove_decoder_generate,
)

PLAIN = layers.decoder_case(CASE)
WINDOW = dataclasses.replace(
    PLAIN.with_options(sliding_window=3, attention_soft_cap=2.0), masks=("causal",)
)
FLOAT32 = dataclasses.replace(WINDOW.with_options(attention_soft_cap=None), dtype="float32")


def interleaved(x: jax.Array, rotation: rotary.Rotation) -> jax.Array:
    """Number 2i turns with number 2i + 1, as in the paper and in GPT-J."""
    cos, sin = rotation.cos_BLk[:, :, None], rotation.sin_BLk[:, :, None]
    a, b = x[..., 0::2], x[..., 1::2]
    return jnp.stack([a * cos - b * sin, b * cos + a * sin], axis=-1).reshape(x.shape)


def other_way(rotate: Callable[..., Any]) -> Callable[..., Any]:
    return lambda x, rotation: rotate(x, rotation._replace(sin_BLk=-rotation.sin_BLk))


def at_positions(change: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A rotation of other positions."""
    return lambda function: lambda positions, config: function(change(positions), config)


def of_config(**fields: Any) -> Callable[[Any], Any]:
    """A rotation by another config."""
    return lambda function: (
        lambda positions, config: function(positions, dataclasses.replace(config, **fields))
    )


def other_frequencies(kind: str, make: Callable[[Any], Any]) -> Plant:
    """Another function for one kind of scaling."""
    return patched(rotary, "SCALINGS", lambda table: {**table, kind: make(table[kind])})


def half_powers(_: Any) -> Callable[..., Any]:
    return lambda config: (
        config.rope_base ** (-np.arange(config.head_width // 2) / config.head_width)
    )


def theta_times_the_stretch(_: Any) -> Callable[..., Any]:
    def frequencies(config: Any) -> Any:
        scaling, K = config.rope_scaling, config.head_width
        longer = config.context_length / scaling.original_context_length
        stretch = scaling.factor * longer - scaling.factor + 1
        return (config.rope_base * stretch) ** (-np.arange(0, K, 2) / K)

    return frequencies


def ramp_over_numbers(function: Callable[..., Any]) -> Callable[..., Any]:
    """YaRN's bounds at numbers of a head, of which a pair has two."""

    def frequencies(config: Any) -> Any:
        return function(dataclasses.replace(config, head_width=2 * config.head_width))[::2]

    return frequencies


def without_two_pi(_: Any) -> Callable[..., Any]:
    def frequencies(config: Any) -> Any:
        scaling, f = config.rope_scaling, rotary.plain_frequencies(config)
        low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
        quickness = np.clip((scaling.original_context_length * f - low) / (high - low), 0, 1)
        return f * quickness + f / scaling.factor * (1 - quickness)

    return frequencies


def epsilon_outside(x: jax.Array, scale: jax.Array, epsilon: float) -> jax.Array:
    return x / (jnp.sqrt(jnp.square(x).mean(-1, keepdims=True)) + epsilon) * scale


def centred(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda x, scale, epsilon: function(x - x.mean(-1, keepdims=True), scale, epsilon)


def without_offset(self: norms.RMSNorm, x: jax.Array) -> jax.Array:
    return norms.rms_norm(x, self.scale[...], self.epsilon)


def gate_for_up(self: mlp.GatedMLP, x: jax.Array) -> jax.Array:
    return self.down(self.gate(x) * mlp.ACTIVATIONS[self.activation](self.up(x)))


def activated_product(self: mlp.GatedMLP, x: jax.Array) -> jax.Array:
    return self.down(mlp.ACTIVATIONS[self.activation](self.gate(x) * self.up(x)))


def strided_groups(function: Callable[..., Any]) -> Callable[..., Any]:
    """Head h of the queries reads head h mod G of the keys."""

    def attend(q: Any, k: Any, *rest: Any, **options: Any) -> Any:
        H, G = q.shape[2], k.shape[2]
        order = np.arange(H).reshape(H // G, G).T.ravel()
        out, weights = function(q[:, :, order], k, *rest, **options)
        back = np.argsort(order)
        return out[:, :, back], weights[:, back]

    return attend


def normalised_last(project: Callable[..., Any]) -> Callable[..., Any]:
    """Queries and keys are rotated, then normalised."""

    def made(self: GroupedQueryAttention, x: jax.Array, rotation: Any) -> Any:
        query_norm, key_norm = self.query_norm, self.key_norm
        assert query_norm is not None
        assert key_norm is not None
        self.query_norm = self.key_norm = None
        q, kv = project(self, x, rotation)
        self.query_norm, self.key_norm = query_norm, key_norm
        return query_norm(q), kv._replace(k_BHMK=key_norm(kv.k_BHMK))

    return made


def queries_alone(rotate: Callable[..., Any]) -> Callable[..., Any]:
    """Keys, which have fewer heads, are not rotated."""
    H = PLAIN.config.num_heads
    return lambda x, rotation: rotate(x, rotation) if x.shape[2] == H else x


def without_scale(init: Callable[..., None]) -> Callable[..., None]:
    def made(self: Any, *args: Any) -> None:
        init(self, *args)
        self.scale = None

    return made


def without_qk_norm(attention: Any) -> None:
    attention.query_norm = attention.key_norm = None


def norm_after_the_sum(self: Any, x: Any, y: Any, norm: Any, key: Any) -> Any:
    x = x + blocks.dropout(y, self.dropout_rate, key)
    return x if norm is None else norm(x)


def one_key_more(window_mask: Callable[..., Any]) -> Callable[..., Any]:
    return lambda queries, keys, window: window_mask(queries, keys, window + 1)


def blocks_moved(count: int) -> Callable[[Any], Any]:
    """A bound of blocks that is moved."""
    return lambda function: lambda *args: function(*args) + count


def _layer(layer: str, name: str, plant: Plant, proof: Proof, case: Case = PLAIN) -> Bug:
    return Bug(f"{layer}: {name}", layer, plant, proof, case)


def _rotary(name: str, plant: Plant, proof: Proof = layers.prove_rotary, **options: Any) -> Bug:
    return _layer("rotary", name, plant, proof, PLAIN.with_options(**options))


def _frequencies(name: str, kind: str, make: Callable[[Any], Any]) -> Bug:
    return _rotary(name, other_frequencies(kind, make), layers.prove_frequencies)


def _model(
    name: str, layer: str, plant: Plant, options: dict[str, Any], proof: Proof = prove_decoder
) -> Bug:
    return Bug(f"decoder: {name}", layer, plant, proof, PLAIN.with_options(**options))


def _in_decoder(path: str, change: Callable[[Any], None]) -> Plant:
    return in_module(path, change, Decoder)


LAYER_BUGS = [
    _layer(
        "soft_cap",
        "not divided by c",
        patched(soft_cap, "soft_cap", lambda _: lambda x, cap: cap * jnp.tanh(x)),
        layers.prove_soft_cap,
    ),
    _rotary("neighbours turn, not halves", patched(rotary, "rotate", lambda _: interleaved)),
    _rotary("turned the other way", patched(rotary, "rotate", other_way)),
    _rotary("positions from 1", patched(rotary, "rotation", at_positions(lambda p: p + 1))),
    _rotary(
        "no attention factor of YaRN",
        patched(rotary, "attention_factor", lambda _: lambda config: 1.0),
        rope_scaling=layers.SCALINGS[3],
    ),
    _frequencies("powers of -i/K", "none", half_powers),
    _frequencies(
        "positions multiplied by the factor",
        "linear",
        lambda f: lambda config: f(config) * config.rope_scaling.factor**2,
    ),
    _frequencies("no exponent K / (K - 2)", "ntk", theta_times_the_stretch),
    _frequencies("YaRN's ramp over numbers, not pairs", "yarn", ramp_over_numbers),
    _frequencies("Llama 3's wavelengths without 2 pi", "llama3", without_two_pi),
    _layer(
        "rms_norm",
        "epsilon outside the root",
        patched(norms, "rms_norm", lambda _: epsilon_outside),
        layers.prove_rms_norm,
    ),
    _layer(
        "rms_norm", "mean subtracted", patched(norms, "rms_norm", centred), layers.prove_rms_norm
    ),
    _layer(
        "rms_norm",
        "scale without its offset",
        patched(norms.RMSNorm, "__call__", lambda _: without_offset),
        layers.prove_rms_norm,
        PLAIN.with_options(norm_unit_offset=True),
    ),
    _layer(
        "gated_mlp",
        "gate and up swapped",
        patched(mlp.GatedMLP, "__call__", lambda _: gate_for_up),
        layers.prove_gated_mlp,
    ),
    _layer(
        "gated_mlp",
        "product activated, not the gate",
        patched(mlp.GatedMLP, "__call__", lambda _: activated_product),
        layers.prove_gated_mlp,
    ),
    _layer(
        "grouped_function",
        "groups of heads strided",
        patched(attention, "attention", strided_groups),
        layers.prove_grouped_function,
    ),
    _layer(
        "grouped_function",
        "no soft cap",
        patched(attention, "soft_cap", lambda _: lambda scores, cap: scores),
        layers.prove_grouped_function,
        WINDOW,
    ),
    _layer(
        "grouped_function",
        "window one key wider",
        patched(masks, "window_mask", one_key_more),
        layers.prove_grouped_function,
        WINDOW,
    ),
    _layer(
        "grouped_query_blocks",
        "window one key narrower",
        patched(attention, "dense_mask", of_the_mask(window=2)),
        layers.prove_grouped_query_blocks,
        WINDOW,
    ),
    _layer(
        "grouped_blockwise",
        "window one key wider",
        patched(blockwise_attention, "may_attend", of_the_mask(window=4)),
        layers.prove_grouped_blockwise,
        WINDOW,
    ),
    _layer(
        "grouped_blockwise",
        "first block of the window skipped",
        patched(blockwise_attention, "start_of_keys", blocks_moved(1)),
        layers.prove_grouped_blockwise,
        WINDOW,
    ),
    _layer(
        "grouped_blockwise",
        "gradient of the window's last block skipped",
        patched(blockwise_attention, "end_of_queries", blocks_moved(-1)),
        layers.prove_grouped_blockwise,
        WINDOW,
    ),
    _layer(
        "grouped_blockwise",
        "gradient without the slope of the cap",
        patched(blockwise_attention, "soft_cap_slope", lambda _: lambda capped, cap: 1.0),
        layers.prove_grouped_blockwise,
        WINDOW,
    ),
    _layer(
        "grouped_flash",
        "window one key wider",
        by_jax(local_window_size=(3, 0)),
        layers.prove_grouped_flash,
        FLOAT32,
    ),
    _layer(
        "grouped_attention",
        "keys not rotated",
        patched(grouped_attention, "rotate", queries_alone),
        layers.prove_grouped_attention,
    ),
    _layer(
        "grouped_attention",
        "queries and keys rotated, then normalised",
        patched(GroupedQueryAttention, "project", normalised_last),
        layers.prove_grouped_attention,
        PLAIN.with_options(qk_norm=True),
    ),
    _layer(
        "grouped_attention",
        "scores of another scale",
        patched(GroupedQueryAttention, "__init__", without_scale),
        layers.prove_grouped_attention,
        PLAIN.with_options(attention_scale=0.3),
    ),
    _layer(
        "causal_block",
        "the sum normalised, not the sub-layer",
        patched(blocks.CausalBlock, "add", lambda _: norm_after_the_sum),
        layers.prove_causal_block,
        PLAIN.with_options(post_norms=True),
    ),
]

BUGS = [
    *LAYER_BUGS,
    _model(
        "RMSNorm with epsilon 1e-6",
        "blocks.0.mlp_norm",
        _in_decoder("blocks.0.mlp_norm", setting("epsilon", 1e-6)),
        {},
    ),
    _model(
        "rotary base of another model",
        "blocks.0",
        patched(decoder, "rotation", of_config(rope_base=10_000.0)),
        QWEN3,
    ),
    _model(
        "queries and keys not normalised",
        "blocks.1.attention",
        _in_decoder("blocks.1.attention", without_qk_norm),
        QWEN3,
    ),
    _model(
        "no window",
        "blocks.0.attention",
        patched(decoder, "Mask", lambda f: lambda causal, window: f(causal=causal)),
        MISTRAL,
    ),
    _model(
        "exact GELU for the tanh form",
        "blocks.1.mlp",
        _in_decoder("blocks.1.mlp", setting("activation", "gelu")),
        GEMMA2,
    ),
    _model(
        "embeddings not scaled",
        "blocks.0",
        patched(Decoder, "embed_tokens", lambda _: lambda self, tokens, key: self.embed(tokens)),
        GEMMA2,
    ),
    _model(
        "no final soft cap",
        "output",
        patched(decoder, "soft_cap", lambda _: lambda logits, cap: logits),
        GEMMA2,
    ),
    _model("embedding untied", "embed", patched(Decoder, "logits", lambda _: untied), {}),
    _model(
        "sub-layers not dropped",
        "blocks.0",
        patched(blocks, "dropout", lambda _: lambda x, rate, key: x),
        MISTRAL,
        prove_decoder_dropout,
    ),
    _model(
        "dropout not rescaled",
        "blocks.0",
        patched(blocks, "dropout", lambda _: not_rescaled),
        {},
        prove_decoder_dropout,
    ),
    _model(
        "each piece of a text at positions from 0",
        "cache",
        patched(decoder, "rotation", at_positions(lambda p: p - p[:, :1])),
        {},
        prove_decoder_cache,
    ),
    _model(
        "window over the slots one wider",
        "cache",
        patched(decoder, "window_mask", one_key_more),
        MISTRAL,
        prove_decoder_cache,
    ),
    _model(
        "cache written one slot late",
        "cache",
        patched(grouped_attention, "write_cache", late),
        MISTRAL,
        prove_decoder_cache,
    ),
    _model(
        "truncated text one token short",
        "generate",
        patched(generate, "truncate_context", one_token_short),
        MISTRAL,
        prove_decoder_generate,
    ),
]
