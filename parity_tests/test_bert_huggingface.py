"""The whole BERT against transformers' BertForMaskedLM of the same random weights."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from torch.nn import functional

from jaxformer.config import BertConfig
from jaxformer.models.bert import Bert
from jaxformer.models.functional import abstract_model, merge
from jaxformer.parity.bounds import BOUNDS
from jaxformer.parity.engine.settings import arithmetic
from jaxformer.porting.compare import relative_error
from jaxformer.training.loss import cross_entropy
from jaxformer.weights.convert import from_torch
from jaxformer.weights.families.bert import HUGGING_FACE
from parity_tests.dtypes import EACH_DTYPE
from parity_tests.huggingface import (
    assert_equal_gradients,
    assert_reads_in_both_directions,
    draw_sizes,
    perturbed,
    tensors,
)

OPTIONS = [
    {},
    {"num_segments": 4, "activation": "gelu_tanh", "norm_epsilon": 1e-6},
    {"activation": "relu"},
]


@pytest.fixture(params=range(len(OPTIONS)))
def config(request) -> BertConfig:
    return BertConfig(**draw_sizes(request.param), **OPTIONS[request.param])


@pytest.fixture(params=EACH_DTYPE)
def pair(request, config):
    """Theirs, and ours with its weights."""
    dtype = request.param
    with arithmetic(dtype):
        torch.manual_seed(0)
        model = transformers.BertForMaskedLM(
            transformers.BertConfig(
                vocab_size=config.vocab_size,
                max_position_embeddings=config.context_length,
                type_vocab_size=config.num_segments,
                hidden_size=config.width,
                num_hidden_layers=config.num_layers,
                num_attention_heads=config.num_heads,
                intermediate_size=config.mlp_width,
                hidden_act=config.activation.replace("tanh", "pytorch_tanh"),
                layer_norm_eps=config.norm_epsilon,
                initializer_range=0.3,
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
                attn_implementation="eager",
                pad_token_id=None,  # else token 0 gets no gradient where it is read
            )
        ).to(getattr(torch, dtype))
        theirs = perturbed(model)
        graphdef, shapes = abstract_model(Bert, dataclasses.replace(config, dtype=dtype))
        yield theirs, graphdef, from_torch(tensors(theirs), HUGGING_FACE, shapes), dtype


@pytest.fixture
def batch(config):
    """Texts of several segments, padded, of which some tokens are asked for."""
    rng, shape = np.random.default_rng(0), (4, config.context_length)
    tokens, targets = rng.integers(0, config.vocab_size, (2, *shape))
    segments = np.sort(rng.integers(0, config.num_segments, shape), axis=1)
    valid = np.arange(shape[1]) < [[shape[1]], [shape[1] - 3], [2], [5]]
    return tokens, segments, valid, targets, valid & (rng.random(shape) < 0.5)


def test_logits_loss_and_every_gradient_are_equal(pair, batch):
    theirs, graphdef, params, dtype = pair
    bound = BOUNDS["model", dtype]
    tokens, segments, valid, targets, asked = map(jnp.asarray, batch)

    def mean_loss(params):
        logits = merge(graphdef, params)(tokens, segments, valid)
        total, count = cross_entropy(logits, targets, asked)
        return total / count, logits

    (loss, logits), grads = jax.jit(jax.value_and_grad(mean_loss, has_aux=True))(params)
    tokens, segments, valid, targets, asked = map(torch.tensor, batch)
    out = theirs(tokens, attention_mask=valid.long(), token_type_ids=segments).logits
    expected_loss = functional.cross_entropy(out[asked], targets[asked])
    expected_loss.backward()
    assert relative_error(logits, out) <= bound
    assert relative_error(loss, expected_loss) <= bound
    expected = from_torch(tensors(theirs, grads=True), HUGGING_FACE, params)
    assert_equal_gradients(grads, expected, bound)


def test_without_segments_and_padding_logits_are_equal(pair, batch):
    theirs, graphdef, params, dtype = pair
    logits = merge(graphdef, jax.tree.map(jnp.asarray, params))(jnp.asarray(batch[0]))
    assert relative_error(logits, theirs(torch.tensor(batch[0])).logits) <= BOUNDS["model", dtype]


def test_the_table_reads_in_both_directions(pair):
    theirs, _, params, _ = pair
    assert_reads_in_both_directions(theirs, HUGGING_FACE, params)
    whole = transformers.BertForPreTraining(theirs.config).to(theirs.dtype)
    whole.load_state_dict(theirs.state_dict(), strict=False)
    found = from_torch(whole.state_dict(), HUGGING_FACE, params)
    jax.tree.map(np.testing.assert_array_equal, found, params)
