"""Proofs of single layers, forwards and backwards, against their twins of the same names.

Each proof takes a case and measures every output, and the gradient with respect to every input and
to every parameter. Options (activation, placement of the norms, bias) are fields of the config.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxformer.config import BlockConfig, NormPlacement
from jaxformer.layers import (
    attention,
    blocks,
    blockwise_attention,
    dropout,
    flash_attention,
    masks,
    mlp,
    norms,
    positions,
)
from jaxformer.parity.bounds import BOUNDS
from jaxformer.parity.engine.cases import (
    Case,
    both_masks,
    both_masks_in_parts,
    dropout_key,
    keep_for,
)
from jaxformer.parity.engine.comparison import Comparison, Proof, late
from jaxformer.parity.engine.model_pair import ModelPair, compare_functions, compare_pair
from jaxformer.porting.compare import Key, compare
from torchref.layers import attention as torch_attention
from torchref.layers import blocks as torch_blocks
from torchref.layers import dropout as torch_dropout
from torchref.layers import masks as torch_masks
from torchref.layers import mlp as torch_mlp
from torchref.layers import norms as torch_norms
from torchref.layers import positions as torch_positions


def prove_masks(case: Case) -> Comparison:
    """Causal, position, padding and segment masks, and their conjunction."""
    B, L, M = case.batch, case.length, case.memory
    rng = case.rng("masks")
    numbers = {
        "queries": rng.integers(0, M, (B, L)),
        "keys": rng.integers(0, M, (B, M)),
        "valid": rng.random((B, M)) < 0.7,
    }

    def outputs(module: Any, convert: Callable[[np.ndarray], Any]) -> dict[Key, Any]:
        q, k, valid = (convert(numbers[name]) for name in ("queries", "keys", "valid"))
        padding, segments = module.padding_mask(valid), module.segment_mask(q, k)
        found = {
            "causal_mask": module.causal_mask(L),
            "position_mask": module.position_mask(q, k),
            "padding_mask": padding,
            "segment_mask": segments,
            "combine_masks": module.combine_masks(None, padding, segments),
        }
        return {Key("masks", "output", name): mask for name, mask in found.items()}

    ours, theirs = outputs(masks, case.to_jax), outputs(torch_masks, case.to_torch)
    return Comparison.of(compare(ours, theirs, 0.0, case.dtype, "layers"))


def prove_sinusoid(case: Case) -> Comparison:
    """The sinusoidal table, float64 on both sides whatever the type of the model."""
    size = case.config.context_length, case.config.width
    key = Key("sinusoidal_positions", "output", "table")
    ours = {key: positions.sinusoidal_positions(*size)}
    theirs = {key: torch_positions.sinusoidal_positions(*size)}
    bound = BOUNDS["layer", "float64"]
    return Comparison.of(compare(ours, theirs, bound, case.dtype, "layers"))


def prove_positions(case: Case) -> Comparison:
    """Learned positions, every row of the batch at its own."""
    T = case.config.context_length
    numbers = case.rng("positions").integers(0, T, (case.batch, case.length))
    pair = ModelPair(
        lambda config, rngs: positions.LearnedPositions(T, config, rngs),
        lambda config: torch_positions.LearnedPositions(T, config),
    )
    return compare_pair(
        case, pair, lambda c: ((c.to_jax(numbers),), (c.to_torch(numbers),)), "layer", "positions"
    )


def prove_layer_norm(case: Case) -> Comparison:
    """LayerNorm of numbers around 0."""
    return _prove_norm(case, _hidden(case))


def prove_layer_norm_far(case: Case) -> Comparison:
    """LayerNorm of numbers around 1024, where a variance by E[x²] - E[x]² has no digits left.

    They are on a binary grid, so that the mean is exact on both sides and only the variance is
    measured; the width must be a power of two.
    """
    digits = 30 if case.dtype == "float64" else 8
    return _prove_norm(case, 1024.0 + np.round(_hidden(case) * 2.0**digits) / 2.0**digits)


def _prove_norm(case: Case, x: np.ndarray) -> Comparison:
    pair = ModelPair(lambda c, rngs: norms.LayerNorm(c), torch_norms.LayerNorm)
    return compare_pair(case, pair, _arguments(x), "layer", "layer_norm")


def prove_dropout(case: Case) -> Comparison:
    """Dropout with the same mask on both sides."""
    x, rate = _hidden(case), case.config.dropout_rate

    def inputs(case: Case) -> tuple[list, list]:
        key = dropout_key(case)
        return [case.to_jax(x), key], [case.to_torch(x), keep_for(case, key)]

    return compare_functions(
        case,
        "dropout",
        lambda x, key: dropout.dropout(x, rate, dropout.fold_path(key, "there")),
        lambda x, keep: torch_dropout.dropout(x, rate, torch_dropout.fold_path(keep, "there")),
        inputs,
    )


def prove_attention_function(case: Case) -> Comparison:
    """softmax(q k^T / sqrt(K)) v and its weights, under the masks of the case."""
    return compare_functions(
        case,
        "attention_function",
        late(lambda: attention.attention),
        torch_attention.attention,
        _queries_keys_values(case, both_masks),
    )


def prove_blockwise_attention(case: Case) -> Comparison:
    """The same by blocks of 3 queries and keys, which do not divide the lengths."""
    return compare_functions(
        case,
        "blockwise_attention",
        late(lambda: functools.partial(blockwise_attention.blockwise_attention, block=3)),
        _twin_output,
        _queries_keys_values(case, both_masks_in_parts),
    )


def prove_query_blocks_attention(case: Case) -> Comparison:
    """The same by blocks of 3 queries, which do not divide their number."""
    return compare_functions(
        case,
        "query_blocks_attention",
        late(lambda: functools.partial(attention.query_blocks_attention, block=3)),
        _twin_output,
        _queries_keys_values(case, both_masks_in_parts),
    )


def prove_flash_attention(case: Case) -> Comparison:
    """The same by jax's function, in bfloat16 by cuDNN's kernels if the device has them."""
    has_kernel = flash_attention.widest_flash_head(jax.devices()[0]) >= case.config.head_width
    kernel: Any = "cudnn" if case.dtype == "bfloat16" and has_kernel else "xla"
    return compare_functions(
        case,
        "flash_attention",
        late(lambda: functools.partial(flash_attention.flash_attention, kernel=kernel)),
        _twin_output,
        _queries_keys_values(case, both_masks_in_parts),
    )


def _twin_output(*arguments: Any) -> Any:
    return torch_attention.attention(*arguments)[0]


def _queries_keys_values(
    case: Case, make_masks: Callable[[Case, int, int], tuple[Any, Any]]
) -> Callable[[Case], tuple[Sequence[Any], Sequence[Any]]]:
    H, K, L = case.config.num_heads, case.config.head_width, case.length
    M = case.length if set(case.masks) & {"causal", "segments"} else case.memory
    q = case.normal("q", case.batch, L, H, K)
    k, v = case.normal("k", case.batch, M, H, K), case.normal("v", case.batch, M, H, K)

    def inputs(case: Case) -> tuple[list, list]:
        ours, theirs = make_masks(case, L, M)
        return [*map(case.to_jax, (q, k, v)), ours], [*map(case.to_torch, (q, k, v)), theirs]

    return inputs


def prove_attention(case: Case) -> Comparison:
    """Multi-head self-attention under the masks of the case, dropout of the weights included."""
    pair = ModelPair(attention.MultiHeadAttention, torch_attention.MultiHeadAttention)
    return compare_pair(case, pair, _attending(case, None), "layer", "attention")


def prove_cross_attention(case: Case) -> Comparison:
    """Multi-head attention to a memory, and its weights as a second output."""
    pair = ModelPair(_AttentionWithWeights, _TwinWithWeights)
    memory = case.normal("memory", case.batch, case.memory, case.config.width)
    return compare_pair(case, pair, _attending(case, memory), "layer", "cross_attention")


class _AttentionWithWeights(attention.MultiHeadAttention):
    def __call__(self, *args: Any) -> Any:
        x, memory, *rest = args
        return self.attend_to(self.split_heads(self.query(x)), self.project_kv(memory), *rest)


class _TwinWithWeights(torch_attention.MultiHeadAttention):
    def forward(self, *args: Any) -> Any:
        x, memory, *rest = args
        return self.attend_to(self.split_heads(self.query(x)), self.project_kv(memory), *rest)


def prove_mlp(case: Case) -> Comparison:
    """The feed-forward network."""
    pair = ModelPair(mlp.MLP, torch_mlp.MLP)
    return compare_pair(case, pair, _arguments(_hidden(case)), "layer", "mlp")


def prove_block(case: Case) -> Comparison:
    """The encoder block under the masks of the case, all its dropouts included."""
    x = _hidden(case)
    pair = ModelPair(blocks.EncoderBlock, torch_blocks.EncoderBlock)

    def inputs(case: Case) -> tuple[list, list]:
        ours, theirs = both_masks(case, case.length, case.length)
        key, keep = _dropout(case)
        return [case.to_jax(x), ours, key], [case.to_torch(x), theirs, keep]

    return compare_pair(case, pair, inputs, "layer", f"{placement_of(case)}_block")


def prove_decoder_block(case: Case) -> Comparison:
    """The decoder block, its tokens and its memory each under the masks of the case."""
    x, memory = _hidden(case), case.normal("memory", case.batch, case.memory, case.config.width)
    pair = ModelPair(blocks.DecoderBlock, torch_blocks.DecoderBlock)
    kinds = tuple(kind for kind in case.masks if kind not in ("causal", "segments"))

    def inputs(case: Case) -> tuple[list, list]:
        ours, theirs = both_masks(case, case.length, case.length)
        across = dataclasses.replace(case, masks=kinds)
        our_memory, their_memory = both_masks(across, case.length, case.memory)
        key, keep = _dropout(case)
        return (
            [case.to_jax(x), case.to_jax(memory), ours, our_memory, key],
            [case.to_torch(x), case.to_torch(memory), theirs, their_memory, keep],
        )

    layer = f"{placement_of(case)}_decoder_block"
    return compare_pair(case, pair, inputs, "layer", layer)


def placement_of(case: Case) -> NormPlacement:
    """Where the norms of a block of 2017 are."""
    assert isinstance(case.config, BlockConfig)
    return case.config.norm_placement


def _hidden(case: Case) -> np.ndarray:
    return case.normal("x", case.batch, case.length, case.config.width)


def _arguments(*arrays: np.ndarray) -> Callable[[Case], tuple[list, list]]:
    return lambda case: ([*map(case.to_jax, arrays)], [*map(case.to_torch, arrays)])


def _dropout(case: Case) -> tuple[Any, Any]:
    """The key and its masks for the twin; None on both sides at rate 0."""
    if case.config.dropout_rate == 0.0:
        return None, None
    return dropout_key(case), keep_for(case, dropout_key(case))


def _attending(
    case: Case, memory: np.ndarray | None
) -> Callable[[Case], tuple[Sequence[Any], Sequence[Any]]]:
    x, M = _hidden(case), case.length if memory is None else case.memory

    def inputs(case: Case) -> tuple[list, list]:
        ours, theirs = both_masks(case, case.length, M)
        key, keep = _dropout(case)
        our_memory = None if memory is None else case.to_jax(memory)
        their_memory = None if memory is None else case.to_torch(memory)
        return (
            [case.to_jax(x), our_memory, ours, key],
            [case.to_torch(x), their_memory, theirs, keep],
        )

    return inputs


def _option(case: Case, masks: tuple = (), **fields: Any) -> Case:
    config = dataclasses.replace(case.config, **fields)
    return dataclasses.replace(case, config=config, masks=masks)


def proofs(case: Case) -> list[tuple[Proof, Case]]:
    """The layers of every model and their options, each with the case it is proven on."""
    option = functools.partial(_option, case)
    none, dropped = option(dropout_rate=0.0), option(dropout_rate=0.2)
    mask_kinds: list[tuple] = [(), ("causal",), ("padding",), ("segments", "causal"), ("nothing",)]
    masked = [option(masks=kinds, dropout_rate=0.0) for kinds in mask_kinds]
    in_parts = [*mask_kinds, ("causal", "padding")]
    return [
        (prove_masks, none),
        (prove_layer_norm, none),
        # Eight bits do not hold 1024 and fractions.
        *([] if case.dtype == "bfloat16" else [(prove_layer_norm_far, none)]),
        (prove_dropout, dropped),
        *((prove_attention_function, each) for each in masked),
        *((prove_attention, each) for each in (*masked, dropped)),
        *((prove_query_blocks_attention, option(kinds, dropout_rate=0.0)) for kinds in in_parts),
        *((prove_blockwise_attention, option(kinds, dropout_rate=0.0)) for kinds in in_parts),
        # jax's function has its softmax in float32, which is no proof in float64.
        *(
            (prove_flash_attention, option(kinds, dropout_rate=0.0))
            for kinds in in_parts
            if case.dtype != "float64" and "segments" not in kinds
        ),
        *(
            (prove_mlp, option(activation=activation, dropout_rate=0.0))
            for activation in ("relu", "gelu", "gelu_tanh")
        ),
        *(
            (prove_block, option(norm_placement=placement, masks=kinds, dropout_rate=rate))
            for placement in ("pre", "post")
            for kinds, rate in ((("causal",), 0.0), (("padding",), 0.0), (("causal",), 0.2))
        ),
    ]


def position_proofs(case: Case) -> list[tuple[Proof, Case]]:
    """The learned positions of GPT and BERT."""
    return [(prove_positions, _option(case, dropout_rate=0.0))]


def transformer_proofs(case: Case) -> list[tuple[Proof, Case]]:
    """What the Transformer alone has: sinusoids, attention to a memory, and the decoder block under
    masks of all kinds and with dropout."""
    kinds: list[tuple] = [(), ("causal",)]
    kinds += [("causal", kind) for kind in ("padding", "segments", "nothing")]
    rates = [*((masks, 0.0) for masks in kinds), (("causal", "padding"), 0.2)]
    return [
        (prove_sinusoid, _option(case, dropout_rate=0.0)),
        (prove_cross_attention, _option(case, masks=("padding",), dropout_rate=0.0)),
        *(
            (prove_decoder_block, _option(case, masks, norm_placement=placement, dropout_rate=rate))
            for placement in ("pre", "post")
            for masks, rate in rates
        ),
    ]
