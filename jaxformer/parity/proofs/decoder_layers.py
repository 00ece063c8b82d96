"""Proofs of the layers that today's decoders are made of, against their twins of the same names.

As in `layers.py`, a proof measures outputs and the gradient of every input and every parameter. A
case of another model is proven with a decoder of its sizes, see `decoder_case`.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from jaxformer.config import Activation, DecoderConfig, RopeScaling
from jaxformer.layers import (
    attention,
    blocks,
    blockwise_attention,
    flash_attention,
    grouped_attention,
    mlp,
    norms,
    rotary,
    soft_cap,
)
from jaxformer.parity.bounds import BOUNDS
from jaxformer.parity.engine.cases import Case, both_masks_in_parts, dropout_key, keep_for
from jaxformer.parity.engine.comparison import Comparison, Proof, late
from jaxformer.parity.engine.model_pair import (
    ModelPair,
    compare_functions,
    compare_pair,
    twin_config,
)
from jaxformer.porting.compare import Key, compare
from torchref.layers import attention as torch_attention
from torchref.layers import blocks as torch_blocks
from torchref.layers import grouped_attention as torch_grouped_attention
from torchref.layers import masks as torch_masks
from torchref.layers import mlp as torch_mlp
from torchref.layers import norms as torch_norms
from torchref.layers import rotary as torch_rotary
from torchref.layers import soft_cap as torch_soft_cap

SCALINGS = (
    RopeScaling(),
    RopeScaling(kind="linear", factor=4.0),
    RopeScaling(kind="ntk", factor=2.0, original_context_length=5),
    RopeScaling(kind="yarn", factor=8.0, original_context_length=64),
    RopeScaling(kind="yarn", factor=4.0, original_context_length=2048, truncate=False),
    RopeScaling(kind="yarn", factor=4.0, original_context_length=512, attention_factor=0.7),
    RopeScaling(kind="llama3", factor=8.0, original_context_length=64),
)
"""Each with frequencies on both sides of its bounds, at the head widths of `prove_frequencies`."""


def decoder_case(case: Case, **options: Any) -> Case:
    """The case with a decoder of its config's sizes, of two heads per key-value head, if even."""
    if isinstance(case.config, DecoderConfig):
        return case.with_options(**options)
    H = case.config.num_heads
    shared = {name: getattr(case.config, name) for name in ("dropout_rate", "norm_epsilon")}
    sizes = {"num_kv_heads": H // 2 if H % 2 == 0 else 1, "head_width": 6}
    return case.sized(DecoderConfig, **sizes | shared | options)


def config_of(case: Case) -> DecoderConfig:
    """The case's config in its type."""
    config = case.model_config
    assert isinstance(config, DecoderConfig)
    return config


def prove_soft_cap(case: Case) -> Comparison:
    """c tanh(x / c) of numbers within and far beyond the cap."""
    x = 10.0 * case.normal("x", case.batch, case.length)
    return compare_functions(
        case,
        "soft_cap",
        late(lambda: functools.partial(soft_cap.soft_cap, cap=3.0)),
        functools.partial(torch_soft_cap.soft_cap, cap=3.0),
        lambda c: ([c.to_jax(x)], [c.to_torch(x)]),
    )


def prove_frequencies(case: Case) -> Comparison:
    """The frequencies of every scaling, float64 on both sides whatever the type of the model."""
    ours, theirs = {}, {}
    for i, scaling in enumerate(SCALINGS):
        for width in (6, 64):
            config = config_of(decoder_case(case, head_width=width, rope_scaling=scaling))
            key = Key("rotary", "output", f"{scaling.kind} {i}, width {width}")
            ours[key] = rotary.rotary_frequencies(config)
            theirs[key] = torch_rotary.rotary_frequencies(twin_config(config))
    bound = BOUNDS["layer", "float64"]
    return Comparison.of(compare(ours, theirs, bound, case.dtype, "layers"))


def prove_rotary(case: Case) -> Comparison:
    """Heads rotated by the scaling of the case, each row at positions of its own, some far."""
    case = decoder_case(case)
    B, L, config = case.batch, case.length, config_of(case)
    x = case.normal("x", B, L, config.num_heads, config.head_width)
    places = case.rng("positions").integers(0, 5000, (B, L))

    def inputs(case: Case) -> tuple[list, list]:
        return [case.to_jax(x), case.to_jax(places)], [case.to_torch(x), case.to_torch(places)]

    def ours(x: Any, positions: Any) -> Any:
        turns = rotary.rotation(positions, config_of(case))
        return rotary.rotate(x, turns), turns

    def theirs(x: Any, positions: Any) -> Any:
        turns = torch_rotary.rotation(positions, twin_config(config_of(case)))
        return torch_rotary.rotate(x, turns), turns

    return compare_functions(case, "rotary", ours, theirs, inputs)


def prove_rms_norm(case: Case) -> Comparison:
    """RMSNorm of numbers of size 1 and of size 1e-3, where epsilon counts."""
    case = decoder_case(case)
    D, sizes = case.config.width, np.where(np.arange(case.length) % 2, 1.0, 1e-3)
    x = case.normal("x", case.batch, case.length, D) * sizes[:, None]
    pair = ModelPair(lambda c, rngs: norms.RMSNorm(D, c), lambda c: torch_norms.RMSNorm(D, c))
    return compare_pair(case, pair, _arguments(x), "layer", "rms_norm")


def prove_gated_mlp(case: Case) -> Comparison:
    """The gated feed-forward network."""
    pair = ModelPair(mlp.GatedMLP, torch_mlp.GatedMLP)
    return compare_pair(decoder_case(case), pair, _arguments(_hidden(case)), "layer", "gated_mlp")


def prove_grouped_function(case: Case) -> Comparison:
    """Attention of grouped heads, its weights too, in the window and under the cap of the case."""
    return _prove_function(
        case,
        "grouped_function",
        lambda cap: functools.partial(attention.attention, cap=cap),
        torch_attention.attention,
    )


def prove_grouped_query_blocks(case: Case) -> Comparison:
    """The same by blocks of 3 queries, which do not divide their number."""
    return _prove_function(
        case,
        "grouped_query_blocks",
        lambda cap: functools.partial(attention.query_blocks_attention, cap=cap, block=3),
        _twin_output,
    )


def prove_grouped_blockwise(case: Case) -> Comparison:
    """The same by blocks of 3 queries and keys, which do not divide the lengths."""
    return _prove_function(
        case,
        "grouped_blockwise",
        lambda cap: functools.partial(blockwise_attention.blockwise_attention, cap=cap, block=3),
        _twin_output,
    )


def prove_grouped_flash(case: Case) -> Comparison:
    """The same by jax's function, without a cap."""
    return _prove_function(
        decoder_case(case, attention_soft_cap=None),
        "grouped_flash",
        lambda cap: functools.partial(flash_attention.flash_attention, kernel="xla"),
        _twin_output,
    )


def _twin_output(*arguments: Any, **options: Any) -> Any:
    return torch_attention.attention(*arguments, **options)[0]


def _prove_function(
    case: Case,
    layer: str,
    function: Callable[[float | None], Callable[..., Any]],
    twin: Callable[..., Any],
) -> Comparison:
    """Attention of q, k and v under the masks of the case; `function` makes it from the cap."""
    case = decoder_case(case)
    config, B, L = config_of(case), case.batch, case.length
    K, cap, window = config.head_width, config.attention_soft_cap, config.sliding_window
    shapes = {"q": config.num_heads, "k": config.num_kv_heads, "v": config.num_kv_heads}
    qkv = [case.normal(name, B, L, heads, K) for name, heads in shapes.items()]

    def inputs(case: Case) -> tuple[list, list]:
        ours, theirs = both_masks_in_parts(case, L, L)
        if window is not None:
            places = torch.arange(L)[None]
            recent = torch_masks.window_mask(places, places, window)
            ours = dataclasses.replace(ours, window=window)
            theirs = torch_masks.combine_masks(theirs, recent)
        return [*map(case.to_jax, qkv), ours], [*map(case.to_torch, qkv), theirs]

    return compare_functions(
        case, layer, late(lambda: function(cap)), functools.partial(twin, cap=cap), inputs
    )


def prove_grouped_attention(case: Case) -> Comparison:
    """Grouped-query attention under the masks of the case, dropout of the weights included."""
    pair = ModelPair(
        grouped_attention.GroupedQueryAttention, torch_grouped_attention.GroupedQueryAttention
    )
    case = decoder_case(case)
    return compare_pair(case, pair, _attending(case), "layer", "grouped_attention")


def prove_causal_block(case: Case) -> Comparison:
    """The block of a decoder under the masks of the case, all its dropouts included."""
    pair = ModelPair(blocks.CausalBlock, torch_blocks.CausalBlock)
    case = decoder_case(case)
    return compare_pair(case, pair, _attending(case), "layer", "causal_block")


def _attending(case: Case) -> Callable[[Case], tuple[list, list]]:
    x, L = _hidden(case), case.length
    places = np.arange(L)[None]

    def inputs(case: Case) -> tuple[list, list]:
        ours, theirs = both_masks_in_parts(case, L, L)
        dropping = case.config.dropout_rate > 0.0
        key = dropout_key(case) if dropping else None
        keep = keep_for(case, dropout_key(case)) if dropping else None
        config = config_of(case)
        turns = rotary.rotation(case.to_jax(places), config)
        twin_turns = torch_rotary.rotation(case.to_torch(places), twin_config(config))
        return [case.to_jax(x), turns, ours, key], [case.to_torch(x), twin_turns, theirs, keep]

    return inputs


def _hidden(case: Case) -> np.ndarray:
    return case.normal("x", case.batch, case.length, case.config.width)


def _arguments(*arrays: np.ndarray) -> Callable[[Case], tuple[list, list]]:
    return lambda case: ([*map(case.to_jax, arrays)], [*map(case.to_torch, arrays)])


def proofs(case: Case) -> list[tuple[Proof, Case]]:
    """Every layer of today's decoders and its options, each with the case it is proven on."""
    option = functools.partial(decoder_case, dataclasses.replace(case, masks=("causal",)))
    window = option(sliding_window=3, attention_soft_cap=2.0)
    padded = dataclasses.replace(window, masks=("causal", "padding"))
    nothing = dataclasses.replace(option(num_kv_heads=1), masks=("nothing",))
    functions = [option(), window, padded, nothing]
    activations: list[Activation] = ["silu", "gelu_tanh", "gelu"]
    everything = {
        "qk_norm": True,
        "attention_bias": True,
        "attention_out_bias": True,
        "attention_soft_cap": 2.0,
        "attention_scale": 0.3,
        "norm_unit_offset": True,
    }
    attending = [option(), option(num_kv_heads=1), option(**everything), option(dropout_rate=0.2)]
    return [
        (prove_soft_cap, option()),
        (prove_frequencies, option()),
        *((prove_rotary, option(rope_scaling=scaling)) for scaling in SCALINGS),
        *((prove_rms_norm, option(norm_unit_offset=offset)) for offset in (False, True)),
        *((prove_gated_mlp, option(activation=activation)) for activation in activations),
        (prove_gated_mlp, option(mlp_bias=True)),
        *((prove_grouped_function, each) for each in functions),
        *((prove_grouped_query_blocks, each) for each in functions),
        *((prove_grouped_blockwise, each) for each in functions),
        # jax's function has its softmax in float32, which is no proof in float64.
        *((prove_grouped_flash, each) for each in functions if case.dtype != "float64"),
        *((prove_grouped_attention, each) for each in attending),
        *((prove_causal_block, option(post_norms=post)) for post in (False, True)),
        (prove_causal_block, option(dropout_rate=0.2, **everything)),
    ]
