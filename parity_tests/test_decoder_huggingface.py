"""The whole decoder against transformers' Llama, Mistral, Qwen and Gemma of random weights."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from torch.nn import functional

from jaxformer.config import DecoderConfig, RopeScaling
from jaxformer.layers.rotary import rotary_frequencies
from jaxformer.models.decoder import Decoder
from jaxformer.models.functional import abstract_model, merge
from jaxformer.parity.bounds import BOUNDS
from jaxformer.parity.engine.settings import arithmetic
from jaxformer.porting.compare import relative_error
from jaxformer.training.loss import cross_entropy
from jaxformer.weights.convert import Row, from_torch
from jaxformer.weights.twin import beneath
from parity_tests.huggingface import assert_equal_gradients, perturbed, tensors, wide

NAMES = {
    "embed": "model.embed_tokens",
    "norm": "model.norm",
    "output": "lm_head",
    "blocks/*/attention_norm": "model.layers.*.input_layernorm",
    "blocks/*/attention/query_norm": "model.layers.*.self_attn.q_norm",
    "blocks/*/attention/key_norm": "model.layers.*.self_attn.k_norm",
    "blocks/*/attention/query": "model.layers.*.self_attn.q_proj",
    "blocks/*/attention/key": "model.layers.*.self_attn.k_proj",
    "blocks/*/attention/value": "model.layers.*.self_attn.v_proj",
    "blocks/*/attention/out": "model.layers.*.self_attn.o_proj",
    "blocks/*/mlp/gate": "model.layers.*.mlp.gate_proj",
    "blocks/*/mlp/up": "model.layers.*.mlp.up_proj",
    "blocks/*/mlp/down": "model.layers.*.mlp.down_proj",
    "blocks/*/mlp_norm": "model.layers.*.post_attention_layernorm",
}
GEMMA2_NAMES = NAMES | {
    "blocks/*/attention_post_norm": "model.layers.*.post_attention_layernorm",
    "blocks/*/mlp_norm": "model.layers.*.pre_feedforward_layernorm",
    "blocks/*/mlp_post_norm": "model.layers.*.post_feedforward_layernorm",
}

SIZES = {"vocab_size": 37, "context_length": 16, "width": 24, "mlp_width": 28, "num_layers": 3}
OURS = DecoderConfig(**SIZES, num_heads=6, num_kv_heads=2, head_width=8, norm_epsilon=1e-5)
THEIRS = {
    "vocab_size": 37,
    "max_position_embeddings": 16,
    "hidden_size": 24,
    "intermediate_size": 28,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "rms_norm_eps": 1e-5,
    "initializer_range": 0.3,
    "attn_implementation": "eager",
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
BASE = {"rope_theta": 10_000.0, "rope_type": "default"}


@dataclasses.dataclass(frozen=True)
class Family:
    """A model of transformers, and the options that it has here and there."""

    name: str
    ours: dict[str, Any]
    theirs: dict[str, Any]

    @property
    def table(self) -> list[Row]:
        names = GEMMA2_NAMES if self.name == "Gemma2" else NAMES
        return [row for ours, theirs in names.items() for row in beneath(ours, theirs)]


GEMMA = {"activation": "gelu_tanh", "norm_unit_offset": True, "scale_embeddings": True}
FAMILIES = {
    "llama": Family("Llama", {}, {"tie_word_embeddings": True}),
    "llama with biases": Family(
        "Llama",
        {
            "tie_embeddings": False,
            "attention_bias": True,
            "attention_out_bias": True,
            "mlp_bias": True,
        },
        {"tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True},
    ),
    "mistral": Family(
        "Mistral",
        {"sliding_window": 4, "tie_embeddings": False, "num_kv_heads": 1},
        {"sliding_window": 4, "tie_word_embeddings": False, "num_key_value_heads": 1},
    ),
    "qwen2": Family("Qwen2", {"attention_bias": True}, {"tie_word_embeddings": True}),
    "qwen3": Family("Qwen3", {"qk_norm": True}, {"tie_word_embeddings": True}),
    "gemma": Family("Gemma", GEMMA, {"hidden_act": "gelu_pytorch_tanh"}),
    "gemma2": Family(
        "Gemma2",
        GEMMA
        | {
            "post_norms": True,
            "attention_scale": 5**-0.5,
            "attention_soft_cap": 3.0,
            "final_soft_cap": 2.0,
            "sliding_window": 5,
        },
        {
            "query_pre_attn_scalar": 5,
            "attn_logit_softcapping": 3.0,
            "final_logit_softcapping": 2.0,
            "sliding_window": 5,
            "layer_types": ["sliding_attention"] * 3,
        },
    ),
}
SCALINGS = {
    "linear": (RopeScaling(kind="linear", factor=3.0), {"rope_type": "linear", "factor": 3.0}),
    "yarn": (
        RopeScaling(kind="yarn", factor=4.0, original_context_length=64),
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    ),
    "llama3": (
        RopeScaling(kind="llama3", factor=8.0, original_context_length=64),
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ),
    # transformers takes the length of the text for T: here all 16 tokens of the context.
    "ntk": (
        RopeScaling(kind="ntk", factor=2.0, original_context_length=8),
        {"rope_type": "dynamic", "factor": 2.0},
    ),
}
FAMILIES |= {
    f"llama {kind}": Family(
        "Llama",
        {"rope_scaling": ours},
        {"tie_word_embeddings": True, "rope_parameters": BASE | theirs}
        | ({"max_position_embeddings": 8} if kind == "ntk" else {}),
    )
    for kind, (ours, theirs) in SCALINGS.items()
}


def built(family: Family) -> torch.nn.Module:
    """Their model in float64, no bias zero and no scale one."""
    config_class = getattr(transformers, f"{family.name}Config")
    config = config_class(**THEIRS | {"rope_parameters": BASE} | family.theirs)
    torch.manual_seed(0)
    return perturbed(getattr(transformers, f"{family.name}ForCausalLM")(config).double())


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_loss_and_every_gradient_are_equal(name):
    family, bound = FAMILIES[name], BOUNDS["model", "float64"]
    config = dataclasses.replace(OURS, dtype="float64", **family.ours)
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (2, config.context_length))
    with arithmetic("float64"), wide():
        theirs = built(family)
        graphdef, shapes = abstract_model(Decoder, config)
        params = from_torch(tensors(theirs), family.table, shapes)

        def mean_loss(params):
            logits = merge(graphdef, params)(jnp.asarray(tokens))
            mask = jnp.ones(tokens[:, 1:].shape, bool)
            total, count = cross_entropy(logits[:, :-1], jnp.asarray(tokens[:, 1:]), mask)
            return total / count, logits

        (loss, logits), grads = jax.jit(jax.value_and_grad(mean_loss, has_aux=True))(params)
        out = theirs(torch.tensor(tokens), use_cache=False).logits
        expected_loss = functional.cross_entropy(out[:, :-1].mT, torch.tensor(tokens[:, 1:]))
        expected_loss.backward()
        assert relative_error(logits, out) <= bound
        assert relative_error(loss, expected_loss) <= bound
        expected = from_torch(tensors(theirs, grads=True), family.table, params)
        assert_equal_gradients(grads, expected, bound)


@pytest.mark.parametrize("kind", SCALINGS)
def test_frequencies_are_those_that_transformers_computes_in_float32(kind):
    ours, theirs = SCALINGS[kind]
    config = dataclasses.replace(OURS, head_width=64, context_length=16, rope_scaling=ours)
    other = transformers.LlamaConfig(
        **THEIRS | {"head_dim": 64, "rope_parameters": BASE | theirs},
    )
    if kind == "ntk":
        other.max_position_embeddings = 8
    compute = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS[theirs["rope_type"]]
    expected, factor = compute(other, "cpu", seq_len=16)
    np.testing.assert_allclose(rotary_frequencies(config), expected.numpy(), rtol=2e-6)
    assert factor == (1.0 if kind != "yarn" else pytest.approx(1 + 0.1 * np.log(4)))
