"""Which JAX leaf is which PyTorch tensor: one table a model, data only, read in both directions.

A `*` stands for one component of a path and takes the same value on both sides.
"""

from typing import NamedTuple


class Row(NamedTuple):
    """A JAX path, a PyTorch name and how the arrays differ."""

    jax: str
    torch: str
    axes: tuple[int, ...] | None = None
    """Transposition from JAX to PyTorch; None if the axes agree."""
    part: tuple[int, int] | None = None
    """(i, n): the leaf is the i-th of n equal parts of the tensor's last axis."""


KERNEL = (1, 0)  # (in, out) to torch.nn.Linear's (out, in)

LINEAR = (
    Row("kernel", "weight", KERNEL),
    Row("bias", "bias"),
)
LAYER_NORM = (
    Row("scale", "weight"),
    Row("bias", "bias"),
)
MULTI_HEAD_ATTENTION = (
    Row("*/kernel", "*.weight", KERNEL),
    Row("*/bias", "*.bias"),
)
MLP = MULTI_HEAD_ATTENTION
POSITIONS = (Row("embedding", "weight"),)
ENCODER_BLOCK = (
    Row("attention/*/kernel", "attention.*.weight", KERNEL),
    Row("attention/*/bias", "attention.*.bias"),
    Row("mlp/*/kernel", "mlp.*.weight", KERNEL),
    Row("mlp/*/bias", "mlp.*.bias"),
    Row("*/scale", "*.weight"),
    Row("*/bias", "*.bias"),
)
GPT = (
    Row("embed/embedding", "embed.weight"),
    Row("positions/embedding", "positions.weight"),
    Row("blocks/*/*/*/kernel", "blocks.*.*.*.weight", KERNEL),
    Row("blocks/*/*/*/bias", "blocks.*.*.*.bias"),
    Row("blocks/*/*/scale", "blocks.*.*.weight"),
    Row("blocks/*/*/bias", "blocks.*.*.bias"),
    Row("norm/scale", "norm.weight"),
    Row("norm/bias", "norm.bias"),
)
"""GPT and torchref's GPT, whose attributes have the same names."""

DECODER_BLOCK = (
    Row("*/*/kernel", "*.*.weight", KERNEL),
    Row("*/*/bias", "*.*.bias"),
    Row("*/scale", "*.weight"),
    Row("*/bias", "*.bias"),
)
TRANSFORMER = (
    Row("*/embedding", "*.weight"),
    Row("output/kernel", "output.weight", KERNEL),
    Row("*/blocks/*/*/*/kernel", "*.blocks.*.*.*.weight", KERNEL),
    Row("*/blocks/*/*/*/bias", "*.blocks.*.*.*.bias"),
    Row("*/blocks/*/*/scale", "*.blocks.*.*.weight"),
    Row("*/blocks/*/*/bias", "*.blocks.*.*.bias"),
    Row("*/norm/scale", "*.norm.weight"),
    Row("*/norm/bias", "*.norm.bias"),
)
"""Transformer and torchref's Transformer, whose attributes have the same names.

Embeddings shared or separate, and the final norms of pre-LN stacks where there are any.
"""

GPT2_HUGGING_FACE = (
    Row("embed/embedding", "transformer.wte.weight"),
    Row("positions/embedding", "transformer.wpe.weight"),
    *(
        Row(f"blocks/*/attention/{name}/{leaf}", f"transformer.h.*.attn.c_attn.{torch}", None, part)
        for name, part in (("query", (0, 3)), ("key", (1, 3)), ("value", (2, 3)))
        for leaf, torch in (("kernel", "weight"), ("bias", "bias"))
    ),
    Row("blocks/*/attention/out/kernel", "transformer.h.*.attn.c_proj.weight"),
    Row("blocks/*/attention/out/bias", "transformer.h.*.attn.c_proj.bias"),
    Row("blocks/*/mlp/up/kernel", "transformer.h.*.mlp.c_fc.weight"),
    Row("blocks/*/mlp/up/bias", "transformer.h.*.mlp.c_fc.bias"),
    Row("blocks/*/mlp/down/kernel", "transformer.h.*.mlp.c_proj.weight"),
    Row("blocks/*/mlp/down/bias", "transformer.h.*.mlp.c_proj.bias"),
    Row("blocks/*/attention_norm/scale", "transformer.h.*.ln_1.weight"),
    Row("blocks/*/attention_norm/bias", "transformer.h.*.ln_1.bias"),
    Row("blocks/*/mlp_norm/scale", "transformer.h.*.ln_2.weight"),
    Row("blocks/*/mlp_norm/bias", "transformer.h.*.ln_2.bias"),
    Row("norm/scale", "transformer.ln_f.weight"),
    Row("norm/bias", "transformer.ln_f.bias"),
)
"""GPT and transformers' GPT2LMHeadModel: its Conv1D kernels are (in, out), its q, k, v are one.

Its `lm_head.weight` is the token embedding again and is left out.
"""

BERT = (
    Row("*/embedding", "*.weight"),
    Row("embedding_norm/scale", "embedding_norm.weight"),
    Row("embedding_norm/bias", "embedding_norm.bias"),
    *(
        Row(f"encoder/blocks/*/{r.jax}", f"encoder.blocks.*.{r.torch}", r.axes)
        for r in ENCODER_BLOCK
    ),
    Row("head/dense/kernel", "head.dense.weight", KERNEL),
    Row("head/dense/bias", "head.dense.bias"),
    Row("head/norm/scale", "head.norm.weight"),
    Row("head/norm/bias", "head.norm.bias"),
    Row("head/bias", "head.bias"),
)
"""Bert and torchref's Bert, whose attributes have the same names."""

_HUGGING_FACE_LINEARS = (
    ("encoder/blocks/*/attention/query", "bert.encoder.layer.*.attention.self.query"),
    ("encoder/blocks/*/attention/key", "bert.encoder.layer.*.attention.self.key"),
    ("encoder/blocks/*/attention/value", "bert.encoder.layer.*.attention.self.value"),
    ("encoder/blocks/*/attention/out", "bert.encoder.layer.*.attention.output.dense"),
    ("encoder/blocks/*/mlp/up", "bert.encoder.layer.*.intermediate.dense"),
    ("encoder/blocks/*/mlp/down", "bert.encoder.layer.*.output.dense"),
    ("head/dense", "cls.predictions.transform.dense"),
)
_HUGGING_FACE_NORMS = (
    ("embedding_norm", "bert.embeddings.LayerNorm"),
    ("encoder/blocks/*/attention_norm", "bert.encoder.layer.*.attention.output.LayerNorm"),
    ("encoder/blocks/*/mlp_norm", "bert.encoder.layer.*.output.LayerNorm"),
    ("head/norm", "cls.predictions.transform.LayerNorm"),
)
BERT_HUGGING_FACE = (
    Row("embed/embedding", "bert.embeddings.word_embeddings.weight"),
    Row("positions/embedding", "bert.embeddings.position_embeddings.weight"),
    Row("segments/embedding", "bert.embeddings.token_type_embeddings.weight"),
    *(
        Row(f"{ours}/{row.jax}", f"{theirs}.{row.torch}", row.axes)
        for rows, pairs in ((LINEAR, _HUGGING_FACE_LINEARS), (LAYER_NORM, _HUGGING_FACE_NORMS))
        for ours, theirs in pairs
        for row in rows
    ),
    Row("head/bias", "cls.predictions.bias"),
)
"""Bert and transformers' BertForMaskedLM.

Its `cls.predictions.decoder` is the token embedding and the bias again and is left out.
"""

_MARIAN_ATTENTION = (
    ("query", "q_proj"),
    ("key", "k_proj"),
    ("value", "v_proj"),
    ("out", "out_proj"),
)
_MARIAN_LINEARS = (
    *(
        (f"{stack}/blocks/*/{ours}/{part}", f"model.{stack}.layers.*.{theirs}.{their_part}")
        for stack, ours, theirs in (
            ("encoder", "attention", "self_attn"),
            ("decoder", "self_attention", "self_attn"),
            ("decoder", "cross_attention", "encoder_attn"),
        )
        for part, their_part in _MARIAN_ATTENTION
    ),
    *(
        (f"{stack}/blocks/*/mlp/{ours}", f"model.{stack}.layers.*.{theirs}")
        for stack in ("encoder", "decoder")
        for ours, theirs in (("up", "fc1"), ("down", "fc2"))
    ),
)
_MARIAN_NORMS = (
    ("encoder/blocks/*/attention_norm", "model.encoder.layers.*.self_attn_layer_norm"),
    ("encoder/blocks/*/mlp_norm", "model.encoder.layers.*.final_layer_norm"),
    ("decoder/blocks/*/self_attention_norm", "model.decoder.layers.*.self_attn_layer_norm"),
    ("decoder/blocks/*/cross_attention_norm", "model.decoder.layers.*.encoder_attn_layer_norm"),
    ("decoder/blocks/*/mlp_norm", "model.decoder.layers.*.final_layer_norm"),
)
MARIAN_HUGGING_FACE = (
    Row("embed/embedding", "model.shared.weight"),
    *(
        Row(f"{ours}/{row.jax}", f"{theirs}.{row.torch}", row.axes)
        for rows, pairs in ((LINEAR, _MARIAN_LINEARS), (LAYER_NORM, _MARIAN_NORMS))
        for ours, theirs in pairs
        for row in rows
    ),
)
"""Transformer of shared embeddings and post-norm, and transformers' MarianMTModel.

Its sinusoids stand in halves, all sines before all cosines, so its width is in another order than
ours: leaves that face the residual stream still have to be put into it.
"""
