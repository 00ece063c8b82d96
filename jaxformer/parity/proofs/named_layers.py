"""The layers that can be proven alone, each by its name."""

from collections.abc import Mapping
from typing import NamedTuple

from jaxformer.parity.engine.comparison import Proof
from jaxformer.parity.proofs import decoder_layers, layers


class Layer(NamedTuple):
    """One layer: its proofs, and the names under which a bug in it is located."""

    proofs: tuple[Proof, ...]
    named: str
    """A regular expression, of the layer alone and as a part of any model."""


LAYERS: Mapping[str, Layer] = {
    "masks": Layer((layers.prove_masks,), "masks"),
    "positions": Layer((layers.prove_positions,), "positions"),
    "sinusoidal_positions": Layer((layers.prove_sinusoid,), "sinusoidal_positions"),
    "layer_norm": Layer((layers.prove_layer_norm, layers.prove_layer_norm_far), r"(.*[._])?norm"),
    "dropout": Layer((layers.prove_dropout,), "dropout"),
    "attention": Layer(
        (layers.prove_attention_function, layers.prove_attention),
        r"attention_function|(.*\.)?(self_)?attention(\..*)?",
    ),
    "query_blocks_attention": Layer(
        (layers.prove_query_blocks_attention,), "query_blocks_attention"
    ),
    "blockwise_attention": Layer((layers.prove_blockwise_attention,), "blockwise_attention"),
    "flash_attention": Layer((layers.prove_flash_attention,), "flash_attention"),
    "cross_attention": Layer((layers.prove_cross_attention,), r"(.*\.)?cross_attention(\..*)?"),
    "mlp": Layer((layers.prove_mlp,), r"(.*\.)?mlp(\..*)?"),
    "block": Layer((layers.prove_block,), r"(encoder\.)?blocks\.\d+"),
    "decoder_block": Layer((layers.prove_decoder_block,), r"decoder\.blocks\.\d+"),
    "soft_cap": Layer((decoder_layers.prove_soft_cap,), "soft_cap"),
    "rotary": Layer((decoder_layers.prove_frequencies, decoder_layers.prove_rotary), "rotary"),
    "rms_norm": Layer((decoder_layers.prove_rms_norm,), "rms_norm"),
    "gated_mlp": Layer((decoder_layers.prove_gated_mlp,), "gated_mlp"),
    "grouped_attention": Layer(
        (
            decoder_layers.prove_grouped_function,
            decoder_layers.prove_grouped_query_blocks,
            decoder_layers.prove_grouped_blockwise,
            decoder_layers.prove_grouped_flash,
            decoder_layers.prove_grouped_attention,
        ),
        r"grouped_\w+",
    ),
    "causal_block": Layer((decoder_layers.prove_causal_block,), "causal_block"),
}
"""The layers that can be proven alone, by the name of `jaxformer parity --layer`."""
