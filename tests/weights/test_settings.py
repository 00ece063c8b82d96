"""Settings of other tools' models: one table read in both directions, and what it refuses."""

import dataclasses
from typing import Any

import pytest

from jaxformer.config import (
    BertConfig,
    DecoderConfig,
    GPTConfig,
    ModelConfig,
    RopeScaling,
    TransformerConfig,
)
from jaxformer.errors import UserError
from jaxformer.weights.huggingface import FAMILIES
from jaxformer.weights.settings import read_settings, write_settings

SIZES: dict[str, Any] = {
    "vocab_size": 53,
    "context_length": 13,
    "width": 24,
    "num_heads": 3,
    "mlp_width": 41,
    "num_layers": 2,
    "norm_epsilon": 1e-4,
    "dropout_rate": 0.2,
}
DECODER = DecoderConfig(
    **SIZES | {"dropout_rate": 0.0}, num_kv_heads=1, head_width=6, rope_base=5e5
)
LLAMA3 = RopeScaling(kind="llama3", factor=8.0, original_context_length=8)
YARN = RopeScaling(kind="yarn", factor=4.0, original_context_length=8, attention_factor=1.5)
CONFIGS: dict[str, list[ModelConfig]] = {
    "gpt2": [GPTConfig(**SIZES), GPTConfig(**SIZES, activation="relu", attention_dropout=False)],
    "bert": [BertConfig(**SIZES, num_segments=3, activation="gelu_tanh")],
    "marian": [
        TransformerConfig(**SIZES | {"norm_epsilon": 1e-5}, activation=activation)
        for activation in ("relu", "gelu")
    ],
    "llama": [
        DECODER,
        dataclasses.replace(DECODER, rope_scaling=LLAMA3, tie_embeddings=False),
        dataclasses.replace(DECODER, rope_scaling=YARN, mlp_bias=True),
        dataclasses.replace(DECODER, attention_bias=True, attention_out_bias=True),
    ],
    "mistral": [dataclasses.replace(DECODER, sliding_window=window) for window in (None, 5)],
    "qwen2": [dataclasses.replace(DECODER, attention_bias=True)],
    "qwen3": [dataclasses.replace(DECODER, qk_norm=True)],
}


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_written_is_read(family):
    for config in CONFIGS[family]:
        assert read_settings(FAMILIES[family], write_settings(FAMILIES[family], config)) == config


@pytest.mark.parametrize(
    ("family", "change", "word"),
    [
        ("gpt2", {"norm_placement": "post"}, "norm-placement post"),
        ("marian", {"share_embeddings": False}, "share-embeddings False"),
        ("marian", {"norm_epsilon": 1e-6}, "norm-epsilon 1e-06"),
        ("llama", {"qk_norm": True}, "qk-norm True"),
        ("llama", {"attention_bias": True}, "attention-out-bias False"),
        ("llama", {"sliding_window": 5}, "sliding-window 5"),
        ("qwen2", {"attention_out_bias": True}, "attention-out-bias True"),
        ("qwen3", {"post_norms": True}, "post-norms True"),
        ("mistral", {"final_soft_cap": 2.0}, "final-soft-cap 2.0"),
    ],
)
def test_a_model_that_a_family_has_no_words_for_is_refused(family, change, word):
    config = dataclasses.replace(CONFIGS[family][0], **change)
    with pytest.raises(UserError, match=word):
        write_settings(FAMILIES[family], config)


def llama(**values: Any) -> dict[str, Any]:
    """A config.json of transformers 4, without the keys of 5."""
    found = write_settings(FAMILIES["llama"], DECODER)
    del found["rope_parameters"], found["rope_scaling"]
    return {key: value for key, value in (found | values).items() if value is not ...}


def test_both_versions_of_the_rotary_keys_are_one_model():
    scaling = {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8,
    }
    old = llama(rope_theta=5e5, rope_scaling={"type": "llama3", **scaling})
    new = llama(
        rope_theta=..., rope_parameters={"rope_theta": 5e5, "rope_type": "llama3", **scaling}
    )
    expected = dataclasses.replace(DECODER, rope_scaling=LLAMA3)
    for values in (old, new):
        assert read_settings(FAMILIES["llama"], values) == expected
    assert read_settings(FAMILIES["llama"], llama()) == DECODER


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"rope_scaling": {"type": "longrope", "factor": 2.0}}, ["'longrope'", "yarn"]),
        ({"rope_scaling": {"rope_type": "linear"}}, ["linear without a factor"]),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "mscale": 1.0}}, ["mscale"]),
        ({"rope_parameters": {"rope_theta": 3.0}}, ["rope_theta differs"]),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, ["partial"]),
        ({"layer_types": ["full_attention", "sliding_attention"]}, ["layer_types"]),
        ({"layer_types": ["sliding_attention"] * 2}, ["sliding_window"]),
        ({"num_key_value_heads": 2}, ["num-kv-heads 2"]),
        ({"head_dim": 7}, ["head-width 7"]),
    ],
)
def test_rotary_positions_and_layers_that_are_not_to_be_had_are_refused(values, words):
    with pytest.raises(UserError) as refused:
        read_settings(FAMILIES["llama"], llama(**values))
    for word in words:
        assert word in str(refused.value)


def test_heads_have_the_width_that_their_class_gives_them():
    """Of Llama it is width / heads, of Qwen 3 it is 128."""
    for family, width in (("llama", 8), ("qwen3", 128)):
        values = write_settings(FAMILIES[family], CONFIGS[family][0])
        del values["head_dim"]
        assert read_settings(FAMILIES[family], values).head_width == width
