"""The causes, most specific first: a word, the faults that it covers, and how far they search.

A fault is a function from a graph to the places where it may be (`sites.Site`); the words are those
of `jaxformer divergence`. Where two words explain a difference equally well, the earlier one is
given and the other is mentioned.
"""

from typing import NamedTuple

from jaxformer.porting.causes import (
    activations,
    attention,
    convolutions,
    kernels,
    layout,
    masks,
    norm_statistics,
    norms,
    parts,
    pooling,
    positions,
    recurrent,
    rotary,
    scales,
    wiring,
)
from jaxformer.porting.causes.sites import Fault


class Row(NamedTuple):
    """A cause: its word and the fault that plants it in the reference."""

    word: str
    fault: Fault


SPECIFIC = (
    Row("label-shift", pooling.label_shift),
    Row("gate-order", recurrent.gate_order),
    Row("reset-placement", recurrent.reset_placement),
    Row("padding", recurrent.padded_steps),
    Row("token-order", recurrent.way_back),
    Row("epsilon", norms.epsilon),
    Row("gelu", activations.other_gelu),
    Row("activation-slope", activations.other_slope),
    Row("activation-missing", activations.missing_activation),
    Row("activation", activations.other_activation),
    Row("softmax-axis", attention.softmax_axis),
    Row("scale-missing", attention.missing_scale),
    Row("embedding-scale", scales.embedding_scale),
    Row("scale-extra", attention.extra_scale),
    Row("mask-missing", masks.missing_mask),
    Row("mask-inverted", masks.inverted_mask),
    Row("mask-shifted", masks.shifted_mask),
    Row("mask-source", masks.mask_source),
    Row("mask-fill", masks.mask_fill),
    Row("kv-repeat", attention.kv_repeat),
    Row("position-bias", attention.position_bias),
    Row("position-bias", positions.slopes),
    Row("wrong-source", wiring.one_row),
    Row("sin-cos-order", positions.sin_cos_order),
    Row("rotary-form", rotary.rotary_form),
    Row("rotary-base", rotary.rotary_base),
    Row("position-offset", positions.position_offset),
    Row("frequencies", positions.frequencies),
    Row("rotary-base", rotary.unusual_base),
    Row("norm-gain", norms.gain),
    Row("norm-missing", norms.missing_norm),
    Row("bias-missing", kernels.missing_bias),
    Row("batch-statistics", norm_statistics.batch_statistics),
    Row("groups", norm_statistics.groups),
    Row("norm-axis", norms.other_axis),
    Row("norm-statistics", norm_statistics.statistics),
    Row("norm-placement", wiring.norm_placement),
    Row("residual", wiring.residual),
    Row("gate-swap", parts.gate_swap),
    Row("router-normalisation", pooling.router),
    Row("padding", pooling.padded_pooling),
    Row("pooling", pooling.pooling),
    Row("conv-padding", convolutions.conv_padding),
    Row("dilation", convolutions.other_dilation),
    Row("transposed-kernel", kernels.transposed_kernel),
    Row("qkv-order", parts.qkv_order),
    Row("qkv-order", layout.fused_by_group),
    Row("head-order", layout.head_order),
    Row("head-order", layout.head_order_of_kernels),
    Row("head-order", layout.heads_in_the_last_axis),
    Row("flatten-order", layout.flatten_order),
    Row("token-order", layout.token_order),
    Row("kernel-layout", kernels.kernel_layout),
    Row("split-order", parts.split_order),
    Row("untied-head", kernels.untied_head),
    Row("scale-missing", scales.left_out),
    Row("output-scale", scales.output_scale),
)
"""Tried first: each says what the port did otherwise."""

GENERAL = (
    Row("padding", kernels.padding_row),
    Row("bias-doubled", kernels.doubled_bias),
    Row("mask-extra", masks.extra_mask),
    Row("activation", activations.added_activation),
    Row("residual", wiring.added_residual),
    Row("wrong-source", wiring.wrong_source),
    Row("wrong-source", kernels.other_weight),
    Row("module-missing", wiring.missing_module),
    Row("precision", kernels.precision),
)
"""Tried where none of those explains the difference: they say less, or are many."""

OWN = frozenset(
    [
        "activation",
        "activation-missing",
        "activation-slope",
        "batch-statistics",
        "bias-missing",
        "conv-padding",
        "dilation",
        "epsilon",
        "gelu",
        "groups",
        "kernel-layout",
        "norm-axis",
        "norm-gain",
        "norm-statistics",
        "transposed-kernel",
    ]
)
"""Words of an operation that is wrong by itself: the module that has it is at fault."""
