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
from jaxformer.models.gpt import GPT
from jaxformer.models.pure import abstract_model, bind, flat_params
from jaxformer.parity.compare import BOUNDS, TRUE_ZEROS, measure
from jaxformer.parity.settings import arithmetic
from jaxformer.training.loss import cross_entropy
from jaxformer.weights.convert import from_torch, to_torch
from jaxformer.weights.tables import GPT2_HUGGING_FACE

CONFIGS = {
    "two layers": GPTConfig(
        vocab_size=50, context_length=12, width=16, num_heads=4, mlp_width=64, num_layers=2
    ),
    "wide, one head": GPTConfig(
        vocab_size=33, context_length=9, width=24, num_heads=1, mlp_width=40, num_layers=1
    ),
}


@pytest.fixture(params=CONFIGS.values(), ids=CONFIGS)
def config(request) -> GPTConfig:
    return request.param


@pytest.fixture(params=["float64", "float32"])
def pair(request, config):
    """Theirs, and ours with its weights."""
    dtype = request.param
    with arithmetic(dtype):
        torch.manual_seed(0)
        theirs = GPT2LMHeadModel(
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
        with torch.no_grad():
            for parameter in theirs.parameters():  # no bias stays zero, no scale one
                parameter += 0.1 * torch.randn_like(parameter)
        graph, shapes = abstract_model(GPT, dataclasses.replace(config, dtype=dtype))
        yield theirs, graph, from_torch(tensors(theirs), GPT2_HUGGING_FACE, shapes), dtype


def tensors(model: GPT2LMHeadModel, grads: bool = False) -> dict[str, np.ndarray]:
    """Its parameters or their gradients, the tied head left out."""
    return {
        name: (p.grad if grads else p).detach().numpy()
        for name, p in model.named_parameters()
        if name != "lm_head.weight"
    }


def test_logits_loss_and_every_gradient_are_equal(config, pair):
    theirs, graph, params, dtype = pair
    bound = BOUNDS["model", dtype]
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (3, config.context_length))

    def mean_loss(params):
        logits = bind(graph, params)(jnp.asarray(tokens))
        mask = jnp.ones(tokens[:, 1:].shape, bool)
        total, count = cross_entropy(logits[:, :-1], jnp.asarray(tokens[:, 1:]), mask)
        return total / count, logits

    (loss, logits), grads = jax.jit(jax.value_and_grad(mean_loss, has_aux=True))(params)
    out = theirs(torch.tensor(tokens)).logits
    # Their own loss is taken in float32, whatever the model's type.
    expected_loss = functional.cross_entropy(out[:, :-1].mT, torch.tensor(tokens[:, 1:]))
    expected_loss.backward()
    assert measure(logits, out) <= bound
    assert measure(loss, expected_loss) <= bound
    expected = flat_params(from_torch(tensors(theirs, grads=True), GPT2_HUGGING_FACE, params))
    for path, grad in flat_params(grads).items():
        assert measure(grad, expected[path], path.endswith(TRUE_ZEROS)) <= bound, path


def test_padding_is_not_attended_to_by_either(config, pair):
    theirs, graph, params, dtype = pair
    L = config.context_length
    tokens = np.random.default_rng(1).integers(0, config.vocab_size, (2, L))
    valid = np.arange(L) < [[L], [L - 3]]
    mask = jnp.asarray(valid)[:, None, None, :]
    logits = bind(graph, jax.tree.map(jnp.asarray, params))(jnp.asarray(tokens), mask)
    out = theirs(torch.tensor(tokens), attention_mask=torch.tensor(valid).long()).logits
    assert measure(logits[valid], out.detach().numpy()[valid]) <= BOUNDS["model", dtype]


def test_the_table_reads_in_both_directions(pair):
    theirs, _, params, _ = pair
    back = to_torch(params, GPT2_HUGGING_FACE)
    assert back.keys() == tensors(theirs).keys()
    for name, array in tensors(theirs).items():
        np.testing.assert_array_equal(back[name], array)
