"""How the Transformer and BERT are trained, against their twins and against torch.optim.Adam."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxformer.config import NoamConfig
from jaxformer.parity.bounds import BOUNDS, SMALL_MODEL_STATE
from jaxformer.parity.engine.cases import TINY, Case
from jaxformer.parity.engine.settings import arithmetic
from jaxformer.parity.proofs import losses, optimizers, training
from jaxformer.parity.proofs.bert import bert_case
from jaxformer.parity.proofs.resume import prove_resume
from jaxformer.parity.proofs.transformer import transformer_case
from jaxformer.porting.compare import relative_error
from jaxformer.training.optimizer import adam
from jaxformer.training.step import apply_gradients, init_state
from parity_tests.dtypes import DTYPES

SMALL = Case(dataclasses.replace(TINY, width=8, mlp_width=8, num_layers=1))
FUNCTIONS = [
    losses.prove_smoothed_cross_entropy,
    losses.prove_label_smoothing_kl,
    optimizers.prove_noam,
    optimizers.prove_adam,
    optimizers.prove_adam_clipped,
]


def failures(found):
    return [row for row in found.rows if not row.ok]


@DTYPES
@pytest.mark.parametrize("proof", FUNCTIONS)
def test_a_function_is_its_twin(proof, dtype):
    assert not failures(proof(dataclasses.replace(SMALL, dtype=dtype)))


@DTYPES
@pytest.mark.parametrize(
    ("proof", "options"),
    [
        (training.prove_objective, {}),
        (training.prove_objective_kl, {}),
        (training.prove_objective_validation, {}),
        (training.prove_objective, {"share_embeddings": False}),
    ],
)
def test_an_objective_of_the_transformer_is_its_twin(proof, options, dtype):
    case = dataclasses.replace(transformer_case(SMALL, **options), dtype=dtype)
    assert not failures(proof(case))


@pytest.mark.slow  # as a GPT does in test_training.py, and both when their bugs are planted
def test_the_transformer_resumes_to_the_last_bit():
    assert not failures(prove_resume(transformer_case(SMALL)))


@DTYPES
@pytest.mark.parametrize("proof", [training.prove_accumulation, training.prove_step_kl])
def test_a_step_of_the_transformer_is_its_twin(proof, dtype):
    assert not failures(proof(dataclasses.replace(transformer_case(SMALL), dtype=dtype)))


def test_a_hundred_steps_of_the_transformer_are_the_twins():
    found = training.prove_training(transformer_case(SMALL))
    assert not failures(found)
    assert max(row.error for row in found.rows) <= SMALL_MODEL_STATE


@DTYPES
def test_the_loss_of_masked_tokens_is_its_twin(dtype):
    case = dataclasses.replace(bert_case(SMALL), dtype=dtype)
    assert not failures(training.prove_objective(case))


def test_twenty_steps_of_bert_are_the_twins():
    found = training.prove_training(bert_case(SMALL))
    assert not failures(found)
    assert max(row.error for row in found.rows) <= SMALL_MODEL_STATE


def test_batches_of_the_proofs_have_padding_on_both_sides_and_slices_of_unequal_weight():
    case = transformer_case(SMALL)
    tokens = case.specials
    for index in range(3):
        batch = training.pair_batch(case, index)
        assert not batch.source_valid.all()
        assert not batch.mask.all()
        assert batch.source_valid.any(axis=1).all()
        assert (batch.source[~batch.source_valid] == tokens.padding).all()
        assert (batch.inputs[:, 0] == tokens.start).all()
        assert ((batch.targets == tokens.end).sum(axis=1) == 1).all()
        # The token after each input is the next input, to the end.
        later = batch.mask[:, 1:]
        np.testing.assert_array_equal(batch.inputs[:, 1:][later], batch.targets[:, :-1][later])
        assert batch.mask[0::2].sum() > 1.3 * batch.mask[1::2].sum()


@pytest.mark.parametrize("clip_norm", [None, 0.5])
def test_a_hundred_updates_are_those_of_torch_optim_adam_under_a_lambda(clip_norm):
    """PyTorch's loop as the Annotated Transformer writes it: Adam of rate 1 times a LambdaLR."""
    width, warmup = 16, 30
    config = NoamConfig(warmup_steps=warmup, clip_norm=clip_norm)
    rng = np.random.default_rng(0)
    start, goals = rng.standard_normal((4, 3)), rng.standard_normal((100, 4, 3))

    with arithmetic("float64"):
        rule = adam(config, width)
        state = init_state(jnp.asarray(start), rule)
        for goal in goals:
            square = jax.value_and_grad(lambda x, goal=goal: jnp.sum((x - goal) ** 2))
            loss, grad = square(state.params)
            state, _ = apply_gradients(state, (loss, jnp.int32(1), grad), rule)

    theirs = torch.nn.Parameter(torch.tensor(start))
    optimizer = torch.optim.Adam([theirs], lr=1.0, betas=(0.9, 0.98), eps=1e-9)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda s: width**-0.5 * min((s + 1) ** -0.5, (s + 1) * warmup**-1.5),
    )
    for goal in goals:
        optimizer.zero_grad()
        ((theirs - torch.tensor(goal)) ** 2).sum().backward()
        if clip_norm is not None:
            torch.nn.utils.clip_grad_norm_([theirs], clip_norm)
        optimizer.step()
        schedule.step()
    assert relative_error(state.params, theirs) <= BOUNDS["model", "float64"]
