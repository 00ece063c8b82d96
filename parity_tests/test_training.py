"""Loss, schedule, clipping, optimizer, accumulation, training and resume against their twins."""

import dataclasses
import math
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jaxformer.batch import Batch
from jaxformer.config import DECODER_PRESETS, GPT_PRESETS, OptimizerConfig
from jaxformer.models.decoder import Decoder
from jaxformer.models.functional import abstract_model, flat_params, init_params
from jaxformer.models.gpt import GPT
from jaxformer.parity.bounds import BOUNDS, SMALL_MODEL_STATE
from jaxformer.parity.engine.cases import TINY, Case
from jaxformer.parity.engine.comparison import compare_values
from jaxformer.parity.engine.model_pair import twin_config
from jaxformer.parity.engine.settings import arithmetic
from jaxformer.parity.engine.training_pair import compare_steps, take_steps, take_twin_steps
from jaxformer.parity.proofs import losses, optimizers, resume, training
from jaxformer.porting.compare import relative_error
from jaxformer.training.muon import orthogonalize
from jaxformer.training.objectives import next_token
from jaxformer.training.optimizer import adamw, is_hidden_kernel, text_optimizer
from jaxformer.training.schedule import warmup_cosine
from jaxformer.training.step import init_state, make_train_step
from parity_tests.dtypes import DTYPES
from torchref.training import optimizer as torch_optimizer

SMALL = dataclasses.replace(TINY, width=8, mlp_width=8, num_layers=1)


@DTYPES
@pytest.mark.parametrize(
    "proof",
    [
        optimizers.prove_schedule,
        optimizers.prove_clipping,
        optimizers.prove_optimizer,
        optimizers.prove_stable_schedule,
        optimizers.prove_muon,
        training.prove_accumulation,
        training.prove_step,
        resume.prove_resume,
    ],
)
def test_training_is_its_twin(proof, dtype):
    found = proof(Case(SMALL, dtype))
    assert found.ok, [row for row in found.rows if not row.ok]


@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.sampled_from([(1, 1), (3, 5)]),
    dtype=st.sampled_from(["float64", "float32"]),
)
def test_loss_is_its_twin(seed, shape, dtype):
    found = losses.prove_cross_entropy(Case(TINY, dtype, seed, *shape))
    assert found.ok, found.rows


def test_a_hundred_steps_are_the_twins():
    found = training.prove_training(Case(TINY, "float64"))
    assert found.ok, [row for row in found.rows if not row.ok]
    assert max(row.error for row in found.rows) <= SMALL_MODEL_STATE


def test_what_a_hundred_steps_leave_out_is_the_key_biases_alone():
    paths = {row.path for row in training.prove_step(Case(SMALL)).rows}
    parameters = {path for path in paths if path.startswith("parameters/")}
    leaves = 4 + 16 * SMALL.num_layers
    assert len(parameters) == leaves - SMALL.num_layers
    assert "parameters/blocks/0/attention/query/bias" in parameters
    assert len(paths) == 3 * len(parameters) + 2


def test_float32_state_is_reported_without_a_bound():
    found = compare_steps(Case(SMALL, "float32"), training.GPT_TRAINING, "training", 3, "state")
    assert {row.bound for row in found.rows} == {None}
    assert found.ok


@given(
    warmup=st.integers(0, 30),
    steps=st.integers(1, 60),
    floor=st.sampled_from([0.0, 1e-4, 1e-3]),
    step=st.integers(0, 70),
)
def test_schedule_is_its_formula(warmup, steps, floor, step):
    config = OptimizerConfig(
        peak_learning_rate=1e-3, floor_learning_rate=floor, warmup_steps=warmup
    )
    if step < warmup:
        expected = 1e-3 * (step + 1) / (warmup + 1)
    elif step >= steps:
        expected = floor if step > warmup else 1e-3
    else:
        cosine = math.cos(math.pi * (step - warmup) / (steps - warmup))
        expected = floor + (1e-3 - floor) * (1 + cosine) / 2
    with arithmetic("float64"):
        rate = float(warmup_cosine(config, steps)(step))
    assert relative_error(np.array(rate), np.array(expected)) <= BOUNDS["model", "float64"]


@given(
    warmup=st.integers(0, 30),
    steps=st.integers(1, 60),
    share=st.sampled_from([0.01, 0.2, 0.5]),
    step=st.integers(0, 70),
)
def test_the_stable_schedule_is_its_formula(warmup, steps, share, step):
    config = OptimizerConfig(
        peak_learning_rate=1e-3,
        floor_learning_rate=1e-5,
        warmup_steps=warmup,
        decay_fraction=share,
        schedule="stable",
    )
    decay = max(round(share * steps), 1)
    decayed = 1e-5 + (1e-3 - 1e-5) * min(max(steps - step, 0) / decay, 1)
    expected = min(decayed, 1e-3 * (step + 1) / (warmup + 1))
    with arithmetic("float64"):
        rate = float(text_optimizer(config, steps).learning_rate(step))
    assert relative_error(np.array(rate), np.array(expected)) <= BOUNDS["model", "float64"]


def test_muon_is_torchs_whose_iteration_is_in_the_type_of_the_gradient():
    """torch.optim.Muon iterates in bfloat16; here its `bfloat16` leaves the type as it is."""
    theirs = torch.nn.Linear(5, 3, bias=False, dtype=torch.float64)
    twin = torch.nn.Linear(5, 3, bias=False, dtype=torch.float64)
    twin.load_state_dict(theirs.state_dict())
    config = OptimizerConfig(kernels="muon", momentum=0.9, weight_decay=0.3)
    rules = [
        torch.optim.Muon(
            theirs.parameters(),
            lr=1e-2,
            momentum=0.9,
            weight_decay=0.3,
            adjust_lr_fn="match_rms_adamw",
        ),
        torch_optimizer.muon(twin, twin_config(config)),
    ]
    rng = np.random.default_rng(0)
    with mock.patch.object(torch.Tensor, "bfloat16", torch.Tensor.double):
        for _ in range(20):
            gradient = torch.tensor(rng.standard_normal((3, 5)))
            for model, rule in zip((theirs, twin), rules, strict=True):
                model.weight.grad = gradient.clone()
                rule.param_groups[0]["lr"] = 1e-2
                rule.step()
    assert relative_error(twin.weight, theirs.weight) <= BOUNDS["model", "float64"]


@pytest.mark.parametrize("shape", [(7, 3), (3, 7), (2, 5, 4)])
def test_singular_values_are_brought_near_one(shape):
    m = np.random.default_rng(0).standard_normal(shape)
    values = np.linalg.svd(orthogonalize(jnp.asarray(m, jnp.float32)), compute_uv=False)
    assert 0.6 < values.min() < values.max() < 1.25


def test_muon_updates_the_kernels_between_hidden_states_alone():
    config = dataclasses.replace(DECODER_PRESETS["toy"], tie_embeddings=False)
    kernels = flat_params(is_hidden_kernel(abstract_model(Decoder, config)[1]))
    assert not kernels["embed/embedding"]
    assert not kernels["output/kernel"]
    assert not kernels["norm/scale"]
    names = ("query", "key", "value", "out", "gate", "up", "down")
    assert {path.split("/")[-2] for path, muon in kernels.items() if muon} == set(names)


def test_the_two_slices_of_a_batch_differ_in_their_number_of_tokens():
    _, _, mask = training.text_batch(Case(SMALL), 0)
    assert mask[0::2].sum() > 1.3 * mask[1::2].sum()


def test_slices_of_equal_rows_drop_different_units():
    config = dataclasses.replace(GPT_PRESETS["toy"], dropout_rate=0.5)
    graphdef, _ = abstract_model(GPT, config)
    params = init_params(GPT, config, jax.random.key(0))
    rule = adamw(OptimizerConfig(), 10)
    row = np.arange(17)[None] % config.vocab_size
    losses = []
    for slices in (1, 2):
        rows = jnp.asarray(np.repeat(row, slices, axis=0))
        batch = Batch(rows[:, :-1], rows[:, 1:], jnp.ones((slices, 16), bool))
        train_step = jax.jit(make_train_step(graphdef, next_token, rule, jax.random.key(1), slices))
        losses.append(float(train_step(init_state(params, rule), batch)[1].loss))
    # Were the masks of both slices those of the first, the mean would be the first one's loss.
    assert abs(losses[0] - losses[1]) > 1e-4


def test_a_step_that_is_not_finite_is_left_out_as_a_twin_leaves_out_its_update():
    """Adam's count stays; the schedule and the dropout continue."""

    def spoilt(objective, poison):
        def spoil(model, part, dropout):
            total, count = objective(model, part, dropout)
            return poison(total, part.inputs[0, 0] == 0), count

        return spoil

    def batch(case, index):
        whole = training.text_batch(case, index)
        whole.inputs[:, 0] = 0 if index in (3, 4, 8) else 1
        return whole

    def where(total, bad):
        return total * jnp.where(bad, jnp.nan, 1.0)

    def torch_where(total, bad):
        return total * (math.nan if bad else 1.0)

    gpt = training.GPT_TRAINING
    pair = gpt._replace(
        batch=batch,
        objective=lambda case: spoilt(gpt.objective(case), where),
        twin_objective=lambda case: spoilt(gpt.twin_objective(case), torch_where),
    )
    case = Case(SMALL).dropping()
    ours, theirs = (
        {
            key: value
            for key, value in values.items()
            if key.path not in ("losses", "gradient norms")
        }
        for values in (
            take_steps(case, pair, "step", 12, 2),
            take_twin_steps(case, pair, "step", 12, 2),
        )
    )
    found = compare_values(ours, theirs, case, "model", "gpt")
    assert found.ok, [row for row in found.rows if not row.ok]
