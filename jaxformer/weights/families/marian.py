"""The Transformer of shared embeddings and post-norm as transformers' MarianMTModel has it.

Its sinusoids are in halves, [sin ... cos ...]; ours alternate, [sin cos sin cos ...]. Both are the
same model if the D units of the residual stream are reordered, so every leaf that faces the stream
is: the embedding, inputs of the projections that read it, outputs of those that write to it, norms.
Files may hold the embedding by further names, and the sinusoids. Ours has no bias of the logits.
"""

from typing import Any

import numpy as np

from jaxformer.config import TransformerConfig
from jaxformer.errors import UserError
from jaxformer.weights.convert import Row, Unused
from jaxformer.weights.families.gpt2 import ACTIVATIONS
from jaxformer.weights.settings import Always, Family, Fixed, Setting, Values
from jaxformer.weights.transforms import Halves
from jaxformer.weights.twin import beneath


def _reading(ours: str, theirs: str) -> tuple[Row, ...]:
    """A projection out of the residual stream: the inputs of its kernel are reordered."""
    kernel, *others = beneath(ours, theirs)
    return kernel._replace(transforms=(Halves(0), *kernel.transforms)), *others


def _writing(ours: str, theirs: str) -> tuple[Row, ...]:
    """A module with the residual stream on the last axis of every leaf."""
    return tuple(
        row._replace(transforms=(Halves(-1), *row.transforms)) for row in beneath(ours, theirs)
    )


def _attention(ours: str, theirs: str) -> tuple[Row, ...]:
    return (
        *_reading(f"{ours}/query", f"{theirs}.q_proj"),
        *_reading(f"{ours}/key", f"{theirs}.k_proj"),
        *_reading(f"{ours}/value", f"{theirs}.v_proj"),
        *_writing(f"{ours}/out", f"{theirs}.out_proj"),
        *_writing(f"{ours}_norm", f"{theirs}_layer_norm"),
    )


def _mlp(ours: str, theirs: str) -> tuple[Row, ...]:
    return (
        *_reading(f"{ours}/mlp/up", f"{theirs}.fc1"),
        *_writing(f"{ours}/mlp/down", f"{theirs}.fc2"),
        *_writing(f"{ours}/mlp_norm", f"{theirs}.final_layer_norm"),
    )


HUGGING_FACE: tuple[Row | Unused, ...] = (
    *_writing("embed", "model.shared"),
    *_attention("encoder/blocks/*/attention", "model.encoder.layers.*.self_attn"),
    *_mlp("encoder/blocks/*", "model.encoder.layers.*"),
    *_attention("decoder/blocks/*/self_attention", "model.decoder.layers.*.self_attn"),
    *_attention("decoder/blocks/*/cross_attention", "model.decoder.layers.*.encoder_attn"),
    *_mlp("decoder/blocks/*", "model.decoder.layers.*"),
    *_writing("embed", "model.encoder.embed_tokens"),
    *_writing("embed", "model.decoder.embed_tokens"),
    *_writing("embed", "lm_head"),
    Unused("model.encoder.embed_positions.weight"),
    Unused("model.decoder.embed_positions.weight"),
    Unused("final_logits_bias", only_zero=True),
)


_SIDES = {"layers": 12, "ffn_dim": 4096, "attention_heads": 16}


def _complete(values: Values) -> Values:
    """Both sides have one size here, and one vocabulary."""
    pairs = [(f"decoder_{name}", f"encoder_{name}", size) for name, size in _SIDES.items()]
    for ours, theirs, size in pairs:
        if values.get(ours, size) != values.get(theirs, size):
            raise UserError(
                f"its config.json asks for {ours} {values.get(ours, size)} beside {theirs} "
                f"{values.get(theirs, size)}: sides of two sizes are not to be had here"
            )
    vocabulary = values.get("vocab_size", 58_101)
    if values.get("decoder_vocab_size") not in (None, vocabulary):
        raise UserError(
            f"its config.json asks for decoder_vocab_size {values['decoder_vocab_size']} beside "
            f"vocab_size {vocabulary}: two vocabularies are not to be had here"
        )
    values["attention_dropout"] = values.get("attention_dropout", 0.0) != 0.0
    return values


def _written(config: TransformerConfig) -> Values:
    sides = {
        "decoder_layers": config.num_layers,
        "decoder_ffn_dim": config.mlp_width,
        "decoder_attention_heads": config.num_heads,
        "decoder_vocab_size": config.vocab_size,
    }
    attention = config.dropout_rate if config.attention_dropout else 0.0
    return sides | {"attention_dropout": attention, "is_encoder_decoder": True}


def _constants(config: TransformerConfig) -> dict[str, Any]:
    return {"final_logits_bias": np.zeros((1, config.vocab_size), np.float32)}


FAMILY = Family(
    model_type="marian",
    architecture="MarianMTModel",
    kind="transformer_text",
    config=TransformerConfig,
    table=HUGGING_FACE,
    settings=(
        Setting("vocab_size", "vocab_size", 58_101),
        Setting("max_position_embeddings", "context_length", 1024),
        Setting("d_model", "width", 1024),
        Setting("encoder_layers", "num_layers", 12),
        Setting("encoder_attention_heads", "num_heads", 16),
        Setting("encoder_ffn_dim", "mlp_width", 4096),
        Setting("activation_function", "activation", "gelu", ACTIVATIONS),
        Setting("dropout", "dropout_rate", 0.1),
        Setting("attention_dropout", "attention_dropout", False),
        Always("norm_placement", "post"),
        Always("norm_epsilon", 1e-5),
        Always("share_embeddings", True),
        Fixed("scale_embedding", True, default=False),
        Fixed("share_encoder_decoder_embeddings", True),
        Fixed("tie_word_embeddings", True),
        Fixed("static_position_embeddings", True),
        Fixed("normalize_before", False),
        Fixed("normalize_embedding", False),
        Fixed("add_final_layer_norm", False),
        Fixed("is_decoder", False),
    ),
    # add_bias_logits: the tensor final_logits_bias says it, which is refused unless it is zero.
    ignored=frozenset({
        "activation_dropout", "add_bias_logits", "classif_dropout",
        "classifier_dropout", "decoder_attention_heads", "decoder_ffn_dim", "decoder_layerdrop",
        "decoder_layers", "decoder_vocab_size", "encoder_layerdrop", "extra_pos_embeddings",
        "init_std", "num_hidden_layers",
    }),
    complete=_complete,
    written=_written,
    constants=_constants,
)  # fmt: skip
