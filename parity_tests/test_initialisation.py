"""The twins start as jaxformer's models do: each parameter from the same distribution."""

import math

import jax
import numpy as np
import pytest
import torch

from jaxformer.config import BertConfig, DecoderConfig, GPTConfig, TransformerConfig
from jaxformer.models.functional import flat_params, init_params
from jaxformer.parity.engine.model_pair import in_jax_names, twin_config
from jaxformer.parity.proofs.bert import BERT_PAIR
from jaxformer.parity.proofs.decoder import DECODER_PAIR
from jaxformer.parity.proofs.gpt import GPT_PAIR
from jaxformer.parity.proofs.transformer import TRANSFORMER_PAIR

SIZES = {
    "vocab_size": 500,
    "context_length": 64,
    "width": 128,
    "num_heads": 4,
    "mlp_width": 512,
    "num_layers": 2,
}
MODELS = [
    pytest.param(GPT_PAIR, GPTConfig(**SIZES), id="gpt"),
    pytest.param(GPT_PAIR, GPTConfig(**SIZES, initializer="xavier"), id="gpt-xavier"),
    pytest.param(TRANSFORMER_PAIR, TransformerConfig(**SIZES, init_std=0.1), id="transformer"),
    pytest.param(
        TRANSFORMER_PAIR,
        TransformerConfig(**SIZES, share_embeddings=False, norm_placement="pre"),
        id="transformer-separate",
    ),
    pytest.param(BERT_PAIR, BertConfig(**SIZES), id="bert"),
    pytest.param(
        DECODER_PAIR,
        DecoderConfig(
            **SIZES,
            num_kv_heads=2,
            head_width=48,
            norm_unit_offset=True,
            post_norms=True,
            qk_norm=True,
            attention_bias=True,
            tie_embeddings=False,
        ),
        id="decoder",
    ),
]


@pytest.mark.parametrize(("pair", "config"), MODELS)
def test_every_parameter_starts_from_the_same_distribution(pair, config):
    params = init_params(pair.build, config, jax.random.key(0))
    ours = flat_params(params)
    torch.manual_seed(0)
    twin = pair.build_twin(twin_config(config))
    tensors = {name: parameter.detach() for name, parameter in twin.named_parameters()}
    theirs = in_jax_names(params, tensors)
    assert set(ours) == set(theirs)
    for path, expected in theirs.items():
        found = np.asarray(ours[path], np.float64)
        if expected.std() == 0:  # all ones or all zeros
            np.testing.assert_array_equal(found, expected, err_msg=path)
            continue
        # Five standard errors of the difference of two means, and of two standard deviations.
        n, size = found.size, expected.std()
        assert abs(found.mean() - expected.mean()) < 5 * size * math.sqrt(2 / n), path
        assert abs(found.std() - size) < 5 * size * math.sqrt(1 / n), path
        # A normal's fourth moment is 3, a uniform's 1.8.
        kurtoses = [((x - x.mean()) ** 4).mean() / x.var() ** 2 for x in (found, expected)]
        assert abs(kurtoses[0] - kurtoses[1]) < 5 * math.sqrt(2 * 24 / n), path
