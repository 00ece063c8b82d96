"""The Transformer of shared embeddings and post-norm as transformers' MarianMTModel has it.

Its sinusoids are in halves, [sin ... cos ...]; ours alternate, [sin cos sin cos ...]. Both are the
same model if the D units of the residual stream are reordered, so every leaf that faces the stream
is: the embedding, inputs of the projections that read it, outputs of those that write to it, norms.
Files may hold the embedding by further names, and the sinusoids. Ours has no bias of the logits.
"""

from jaxformer.weights.convert import Row, Unused
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
