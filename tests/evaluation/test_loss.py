"""Evaluation: the mean over every token, however it is cut into batches."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.config import GPT_PRESETS, MeshConfig
from jaxformer.data.batches import evaluation_batches
from jaxformer.evaluation.loss import Evaluation, evaluate
from jaxformer.models.functional import abstract_model, init_params, merge
from jaxformer.models.gpt import GPT
from jaxformer.sharding.mesh import batch_sharding, make_mesh
from jaxformer.training.objectives import next_token
from jaxformer.training.step import make_eval_step

CONFIG = GPT_PRESETS["toy"]
L = 13
TOKENS = np.random.default_rng(0).integers(0, CONFIG.vocab_size, 101).astype(np.uint16)


@pytest.fixture(scope="module")
def model():
    graphdef, _ = abstract_model(GPT, CONFIG)
    return graphdef, init_params(GPT, CONFIG, jax.random.key(0))


def score(model, batch_size: int, mesh: MeshConfig) -> Evaluation:
    graphdef, params = model
    return evaluate(
        jax.jit(make_eval_step(graphdef, next_token)),
        params,
        evaluation_batches(TOKENS, batch_size, L),
        batch_sharding(make_mesh(mesh)),
    )


def test_the_mean_is_over_every_token_but_the_first(model):
    graphdef, params = model
    losses = []
    for start in range(0, 100, L):
        window = TOKENS[start : start + L + 1].astype(np.int32)
        logits = merge(graphdef, params)(jnp.asarray(window[None, :-1]))[0]
        logs = jax.nn.log_softmax(logits)
        losses += [-float(logs[i, token]) for i, token in enumerate(window[1:])]
    found = score(model, 8, MeshConfig())
    assert found.num_tokens == 100
    assert found.loss == pytest.approx(sum(losses) / len(losses), rel=1e-6)


def test_batch_size_and_mesh_do_not_matter(model):
    one = score(model, 8, MeshConfig(data=8))
    other = score(model, 24, MeshConfig(data=2, fsdp=4))
    assert other.num_tokens == one.num_tokens
    assert other.loss == pytest.approx(one.loss, rel=1e-6)


def test_units():
    evaluation = Evaluation(loss=math.log(8), num_tokens=10)
    assert evaluation.perplexity == pytest.approx(8)
    assert evaluation.bits_per_byte(tokens_per_byte=0.5) == pytest.approx(1.5)
    assert Evaluation(loss=1e9, num_tokens=1).perplexity == math.inf
