"""GPT-2 as transformers' GPT2LMHeadModel has it.

Its Conv1D kernels are (in, out) like ours; query, key and value are joined along the outputs. Its
`lm_head.weight` is the token embedding again, and older files hold the causal mask of each layer.
"""

from jaxformer.weights.convert import Row, Unused
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
