"""GPT-2 as transformers' GPT2LMHeadModel has it.

Its Conv1D kernels are (in, out) like ours; query, key and value are joined along the outputs. Its
`lm_head.weight` is the token embedding again, and older files hold the causal mask of each layer.
"""

from jaxformer.config import GPTConfig
from jaxformer.weights.convert import Row, Unused
from jaxformer.weights.settings import Always, Family, Fixed, Setting, Values
from jaxformer.weights.twin import beneath


def _conv1d(ours: str, theirs: str) -> tuple[Row, ...]:
    return Row(f"{ours}/kernel", f"{theirs}.weight"), Row(f"{ours}/bias", f"{theirs}.bias")


def _query_key_value(leaf: str) -> tuple[str, ...]:
    return tuple(f"blocks/*/attention/{part}/{leaf}" for part in ("query", "key", "value"))


HUGGING_FACE: tuple[Row | Unused, ...] = (
    *beneath("embed", "transformer.wte"),
    *beneath("positions", "transformer.wpe"),
    Row(_query_key_value("kernel"), "transformer.h.*.attn.c_attn.weight", axis=1),
    Row(_query_key_value("bias"), "transformer.h.*.attn.c_attn.bias"),
    *_conv1d("blocks/*/attention/out", "transformer.h.*.attn.c_proj"),
    *_conv1d("blocks/*/mlp/up", "transformer.h.*.mlp.c_fc"),
    *_conv1d("blocks/*/mlp/down", "transformer.h.*.mlp.c_proj"),
    *beneath("blocks/*/attention_norm", "transformer.h.*.ln_1"),
    *beneath("blocks/*/mlp_norm", "transformer.h.*.ln_2"),
    *beneath("norm", "transformer.ln_f"),
    Row("embed/embedding", "lm_head.weight"),
    Unused("transformer.h.*.attn.bias"),
    Unused("transformer.h.*.attn.masked_bias"),
)


ACTIVATIONS = {
    "gelu_new": "gelu_tanh",
    "gelu": "gelu",
    "relu": "relu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python": "gelu",
}


def _complete(values: Values) -> Values:
    """F is 4 D where no number is given."""
    if values.get("n_inner") is None:
        width = values.get("n_embd", 768)
        values["n_inner"] = 4 * width if isinstance(width, int) else None
    values["attn_pdrop"] = values.get("attn_pdrop", 0.1) != 0.0
    return values


def _written(config: GPTConfig) -> Values:
    rate = config.dropout_rate
    return {"embd_pdrop": rate, "attn_pdrop": rate if config.attention_dropout else 0.0}


FAMILY = Family(
    model_type="gpt2",
    architecture="GPT2LMHeadModel",
    kind="gpt",
    config=GPTConfig,
    table=HUGGING_FACE,
    settings=(
        Setting("vocab_size", "vocab_size", 50_257),
        Setting("n_positions", "context_length", 1024),
        Setting("n_embd", "width", 768),
        Setting("n_layer", "num_layers", 12),
        Setting("n_head", "num_heads", 12),
        Setting("n_inner", "mlp_width", None),
        Setting("activation_function", "activation", "gelu_new", ACTIVATIONS),
        Setting("layer_norm_epsilon", "norm_epsilon", 1e-5),
        Setting("resid_pdrop", "dropout_rate", 0.1),
        Setting("attn_pdrop", "attention_dropout", 0.1),
        Always("norm_placement", "pre"),
        Fixed("scale_attn_weights", True),
        Fixed("scale_attn_by_inverse_layer_idx", False),
        Fixed("add_cross_attention", False),
    ),
    # tie_word_embeddings: the tensors say it, for an untied lm_head differs from the embedding.
    ignored=frozenset({
        "embd_pdrop", "n_ctx", "reorder_and_upcast_attn", "summary_activation",
        "summary_first_dropout", "summary_proj_to_labels", "summary_type", "summary_use_proj",
        "tie_word_embeddings",
    }),
    complete=_complete,
    written=_written,
)  # fmt: skip
