"""The whole GPT against transformers' GPT2LMHeadModel of the same random weights."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import GPT2Config, GPT2LMHeadModel

from jaxformer.config import GPTConfig
from jaxformer.models.functional import abstract_model, merge
from jaxformer.models.gpt import GPT
from jaxformer.parity.bounds import BOUNDS
from jaxformer.parity.engine.settings import arithmetic
from jaxformer.porting.compare import relative_error
from jaxformer.training.loss import cross_entropy
from jaxformer.weights.convert import from_torch
from jaxformer.weights.families.gpt2 import HUGGING_FACE
from parity_tests.dtypes import EACH_DTYPE
from parity_tests.huggingface import (
    assert_equal_gradients,
    assert_reads_in_both_directions,
    draw_sizes,
    perturbed,
    tensors,
)


@pytest.fixture(params=range(3))
def config(request) -> GPTConfig:
    return GPTConfig(**draw_sizes(request.param))


@pytest.fixture(params=EACH_DTYPE)
def pair(request, config):
    """Theirs, and ours with its weights."""
    dtype = request.param
    with arithmetic(dtype):
        torch.manual_seed(0)
        model = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=config.vocab_size,
                n_positions=config.context_length,
                n_embd=config.width,
                n_layer=config.num_layers,
                n_head=config.num_heads,
                n_inner=config.mlp_width,
                initializer_range=0.3,
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
                bos_token_id=0,
                eos_token_id=0,
            )
        ).to(getattr(torch, dtype))
        theirs = perturbed(model)
        graphdef, shapes = abstract_model(GPT, dataclasses.replace(config, dtype=dtype))
        yield theirs, graphdef, from_torch(tensors(theirs), HUGGING_FACE, shapes), dtype


def test_logits_loss_and_every_gradient_are_equal(config, pair):
    theirs, graphdef, params, dtype = pair
    bound = BOUNDS["model", dtype]
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (3, config.context_length))

    def mean_loss(params):
        logits = merge(graphdef, params)(jnp.asarray(tokens))
        mask = jnp.ones(tokens[:, 1:].shape, bool)
        total, count = cross_entropy(logits[:, :-1], jnp.asarray(tokens[:, 1:]), mask)
        return total / count, logits

    (loss, logits), grads = jax.jit(jax.value_and_grad(mean_loss, has_aux=True))(params)
    out = theirs(torch.tensor(tokens)).logits
    # Their own loss is computed in float32 in a model of any type.
    expected_loss = functional.cross_entropy(out[:, :-1].mT, torch.tensor(tokens[:, 1:]))
    expected_loss.backward()
    assert relative_error(logits, out) <= bound
    assert relative_error(loss, expected_loss) <= bound
    expected = from_torch(tensors(theirs, grads=True), HUGGING_FACE, params)
    assert_equal_gradients(grads, expected, bound)


def test_padding_is_not_attended_to_by_either(config, pair):
    theirs, graphdef, params, dtype = pair
    L = config.context_length
    tokens = np.random.default_rng(1).integers(0, config.vocab_size, (2, L))
    valid = np.arange(L) < [[L], [L - 3]]
    mask = jnp.asarray(valid)[:, None, None, :]
    logits = merge(graphdef, jax.tree.map(jnp.asarray, params))(jnp.asarray(tokens), mask)
    out = theirs(torch.tensor(tokens), attention_mask=torch.tensor(valid).long()).logits
    assert relative_error(logits[valid], out.detach().numpy()[valid]) <= BOUNDS["model", dtype]


def test_the_table_reads_in_both_directions(pair):
    theirs, _, params, _ = pair
    assert_reads_in_both_directions(theirs, HUGGING_FACE, params)
    bare = from_torch(theirs.transformer.state_dict(), HUGGING_FACE, params)
    jax.tree.map(np.testing.assert_array_equal, bare, params)
