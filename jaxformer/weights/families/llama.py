"""Llama and its kin as transformers has them: Mistral, Qwen 2 and 3, Gemma share names and parts.

Their projections are torch.nn.Linear under other names, q and k in halves as ours. `lm_head` is the
token embedding again, or a matrix of its own, as `tie_word_embeddings` says. The rotary positions
are `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (4).
"""

from collections.abc import Callable, Mapping
from typing import Any

from jaxformer.config import DecoderConfig, RopeScaling
from jaxformer.errors import UserError
from jaxformer.weights.convert import Row, Unused
from jaxformer.weights.families.gpt2 import ACTIVATIONS
from jaxformer.weights.settings import Always, Family, Fixed, Setting, Values
from jaxformer.weights.twin import beneath

_LAYER = "model.layers.*"
_NAMES = {
    "embed": "model.embed_tokens",
    "norm": "model.norm",
    "blocks/*/attention_norm": f"{_LAYER}.input_layernorm",
    "blocks/*/attention/query_norm": f"{_LAYER}.self_attn.q_norm",
    "blocks/*/attention/key_norm": f"{_LAYER}.self_attn.k_norm",
    "blocks/*/attention/query": f"{_LAYER}.self_attn.q_proj",
    "blocks/*/attention/key": f"{_LAYER}.self_attn.k_proj",
    "blocks/*/attention/value": f"{_LAYER}.self_attn.v_proj",
    "blocks/*/attention/out": f"{_LAYER}.self_attn.o_proj",
    "blocks/*/mlp/gate": f"{_LAYER}.mlp.gate_proj",
    "blocks/*/mlp/up": f"{_LAYER}.mlp.up_proj",
    "blocks/*/mlp/down": f"{_LAYER}.mlp.down_proj",
    "blocks/*/mlp_norm": f"{_LAYER}.post_attention_layernorm",
}
_COMMON: tuple[Row | Unused, ...] = (
    *(row for ours, theirs in _NAMES.items() for row in beneath(ours, theirs)),
    Unused(f"{_LAYER}.self_attn.rotary_emb.inv_freq"),
)
TIED = (*_COMMON, Row("embed/embedding", "lm_head.weight"))
UNTIED = (*_COMMON, *beneath("output", "lm_head"))

ROPE = {"rope_parameters", "rope_scaling", "rope_theta"}
"""Keys of config.json that say how positions turn queries and keys."""
_SCALING: Mapping[str, Mapping[str, str]] = {
    "linear": {"factor": "factor"},
    "ntk": {"factor": "factor"},
    "yarn": {
        "factor": "factor",
        "original_max_position_embeddings": "original_context_length",
        "beta_fast": "beta_fast",
        "beta_slow": "beta_slow",
        "truncate": "truncate",
        "attention_factor": "attention_factor",
    },
    "llama3": {
        "factor": "factor",
        "original_max_position_embeddings": "original_context_length",
        "low_freq_factor": "low_frequency_factor",
        "high_freq_factor": "high_frequency_factor",
    },
}
"""Of each kind of ours: their keys and our fields."""
_KINDS = {"linear": "linear", "dynamic": "ntk", "yarn": "yarn", "llama3": "llama3"}
"""Their types and our kinds."""


def read_rope(
    values: Values, context_length: int, default_base: float
) -> tuple[float, RopeScaling]:
    """The base and the scaling of the rotary positions, by the keys of either version.

    Raises:
        UserError: a type or a key is unknown, or the two versions disagree.
    """
    new, old = values.get("rope_parameters"), values.get("rope_scaling")
    found: Values = dict(new if new is not None else old or {})
    base = found.pop("rope_theta", values.get("rope_theta", default_base))
    if new is not None and values.get("rope_theta", base) != base:
        raise _rope("rope_theta differs from that of rope_parameters")
    kind = found.pop("rope_type", found.pop("type", "default"))
    found.pop("type", None)
    if found.pop("partial_rotary_factor", 1.0) != 1.0:
        raise _rope("a partial_rotary_factor, which is not to be had here")
    if type(base) not in (int, float):
        raise _rope(f"rope_theta {base!r}, which is not a number")
    if kind == "default":
        return float(base), RopeScaling()
    if kind not in _KINDS:
        raise _rope(f"the rope_type {kind!r}, which is none of {', '.join(_KINDS)}")
    ours: Any = _KINDS[kind]
    if kind == "dynamic":  # longer texts than this, which stretch the base, are refused here
        found.pop("original_max_position_embeddings", None)
    if unknown := found.keys() - _SCALING[ours].keys():
        raise _rope(f"{', '.join(sorted(unknown))} of rope_type {kind}, unknown here")
    given = {_SCALING[ours][key]: value for key, value in found.items() if value is not None}
    if "factor" not in given:
        raise _rope(f"the rope_type {kind} without a factor")
    if not all(type(value) in (int, float, bool) for value in given.values()):
        raise _rope(f"rope_type {kind} by {found}, which are not all numbers")
    wide: dict[str, Any] = {
        k: v if k in ("original_context_length", "truncate") else float(v) for k, v in given.items()
    }
    wide.setdefault("original_context_length", context_length)
    return float(base), RopeScaling(kind=ours, **wide)


def _rope(what: str) -> UserError:
    return UserError(f"its config.json asks for rotary positions by {what}")


def write_rope(config: DecoderConfig) -> Values:
    """The keys of both versions: the inverse of `read_rope`."""
    scaling, base = config.rope_scaling, {"rope_theta": config.rope_base}
    if scaling.kind == "none":
        return {"rope_parameters": base | {"rope_type": "default"}, "rope_scaling": None, **base}
    if scaling.kind == "ntk" and scaling.original_context_length < config.context_length:
        raise UserError(
            "model.rope-scaling.kind ntk beyond its first context is not to be had for other tools"
        )
    kind = {ours: theirs for theirs, ours in _KINDS.items()}[scaling.kind]
    values = {theirs: getattr(scaling, ours) for theirs, ours in _SCALING[scaling.kind].items()}
    values = {key: value for key, value in values.items() if value is not None}
    found = {"rope_type": kind, **values}
    return {"rope_parameters": base | found, "rope_scaling": found, **base}


def _completed(values: Values, heads: int, kv_heads: int | None, head_dim: int | None) -> Values:
    """Fills in what follows from other keys, by the class's own rules."""
    num_heads, width = values.get("num_attention_heads", heads), values.get("hidden_size", 4096)
    given = values.get("num_key_value_heads", kv_heads)
    values["num_key_value_heads"] = num_heads if given is None else given
    if values.get("head_dim", head_dim) is None:
        values["head_dim"] = width // num_heads
    types = values.get("layer_types") or []
    if set(types) - {"full_attention", "sliding_attention"} or len(set(types)) > 1:
        raise UserError(
            f"its config.json asks for layer_types {', '.join(sorted(set(types)))}: layers of two "
            "kinds are not to be had here"
        )
    return values


def _complete(
    context: int,
    kv_heads: int | None = None,
    head_dim: int | None = None,
    window: Callable[[Values], Any] = lambda values: None,
    heads: int = 32,
) -> Callable[[Values], Values]:
    def complete(values: Values) -> Values:
        values = _completed(values, heads, kv_heads, head_dim)
        context_length = values.get("max_position_embeddings", context)
        base, scaling = read_rope(values, context_length, 1e4)
        values |= {"rope_theta": base, "rope_scaling": scaling, "sliding_window": window(values)}
        if values["sliding_window"] is None and "sliding_attention" in values.get(
            "layer_types", ()
        ):
            raise UserError("its config.json asks for layer_types with a sliding_window of none")
        return values

    return complete


def _settings(
    vocab_size: int,
    mlp_width: int,
    context: int,
    kv_heads: int | None,
    *own: Setting | Fixed | Always,
) -> tuple[Setting | Fixed | Always, ...]:
    return (
        Setting("vocab_size", "vocab_size", vocab_size),
        Setting("max_position_embeddings", "context_length", context),
        Setting("hidden_size", "width", 4096),
        Setting("num_hidden_layers", "num_layers", 32),
        Setting("num_attention_heads", "num_heads", 32),
        Setting("num_key_value_heads", "num_kv_heads", kv_heads),
        Setting("head_dim", "head_width", 128),
        Setting("intermediate_size", "mlp_width", mlp_width),
        Setting(
            "hidden_act", "activation", "silu", {"silu": "silu", "swish": "silu", **ACTIVATIONS}
        ),
        Setting("rms_norm_eps", "norm_epsilon", 1e-6),
        Setting("tie_word_embeddings", "tie_embeddings", False),
        Setting("rope_theta", "rope_base", 1e4),
        Setting("rope_scaling", "rope_scaling", RopeScaling()),
        Always("norm_unit_offset", False),
        Always("scale_embeddings", False),
        Always("post_norms", False),
        Always("attention_scale", None),
        Always("attention_soft_cap", None),
        Always("final_soft_cap", None),
        *own,
    )


_IGNORED = ROPE | {
    "attention_dropout",
    "is_llama_config",
    "layer_types",
    "max_window_layers",
    "pretraining_tp",
    "transformers.js_config",
}


def _family(
    name: str,
    architecture: str,
    settings: tuple[Setting | Fixed | Always, ...],
    complete: Callable[[Values], Values],
    ignored: frozenset[str] = frozenset(),
    written: Callable[[DecoderConfig], Values] = write_rope,
) -> Family:
    return Family(
        model_type=name,
        architecture=architecture,
        kind="decoder",
        config=DecoderConfig,
        table=TIED,
        untied=UNTIED,
        settings=settings,
        ignored=frozenset(_IGNORED | ignored),
        complete=complete,
        written=written,
    )


NO_WINDOW = Always("sliding_window", None)
NO_BIAS = Always("attention_bias", False), Always("attention_out_bias", False)
LLAMA = _family(
    "llama",
    "LlamaForCausalLM",
    _settings(
        32_000,
        11_008,
        2048,
        None,
        NO_WINDOW,
        Always("qk_norm", False),
        Setting("attention_bias", "attention_bias", False),
        Setting("attention_bias", "attention_out_bias", False),
        Setting("mlp_bias", "mlp_bias", False),
        Fixed("rope_interleaved", False),
    ),
    _complete(2048),
)
MISTRAL = _family(
    "mistral",
    "MistralForCausalLM",
    _settings(
        32_000,
        14_336,
        131_072,
        8,
        *NO_BIAS,
        Always("mlp_bias", False),
        Always("qk_norm", False),
        Setting("sliding_window", "sliding_window", 4096),
    ),
    _complete(131_072, 8, window=lambda values: values.get("sliding_window", 4096)),
)
QWEN2 = _family(
    "qwen2",
    "Qwen2ForCausalLM",
    _settings(
        151_936,
        22_016,
        32_768,
        32,
        NO_WINDOW,
        Always("attention_bias", True),
        Always("attention_out_bias", False),
        Always("mlp_bias", False),
        Always("qk_norm", False),
        Fixed("use_sliding_window", False),
    ),
    _complete(32_768, 32),
    frozenset({"sliding_window"}),
    lambda config: write_rope(config) | {"sliding_window": None},
)
QWEN3 = _family(
    "qwen3",
    "Qwen3ForCausalLM",
    _settings(
        151_936,
        22_016,
        32_768,
        32,
        NO_WINDOW,
        Setting("attention_bias", "attention_bias", False),
        Setting("attention_bias", "attention_out_bias", False),
        Always("mlp_bias", False),
        Always("qk_norm", True),
        Fixed("use_sliding_window", False),
    ),
    _complete(32_768, 32, 128),
    frozenset({"sliding_window"}),
    lambda config: write_rope(config) | {"sliding_window": None},
)
FAMILIES = (LLAMA, QWEN2, QWEN3, MISTRAL)
