"""A step whose loss or gradient is not finite, or a spike if asked so, changes no parameter."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxformer.batch import Batch
from jaxformer.checkpoint import state_hash
from jaxformer.config import GPT_PRESETS, OptimizerConfig, SpikeConfig
from jaxformer.models.functional import abstract_model, init_params
from jaxformer.models.gpt import GPT
from jaxformer.training import step
from jaxformer.training.loss import cross_entropy
from jaxformer.training.objectives import next_token
from jaxformer.training.optimizer import adamw
from jaxformer.training.schedule import warmup_cosine
from jaxformer.training.spikes import WINDOW, LossStats
from tests.flags import AS_USERS_COMPILE

CONFIG = dataclasses.replace(GPT_PRESETS["toy"], num_layers=1, dropout_rate=0.1)
SCHEDULE = OptimizerConfig(warmup_steps=2)
RULE = adamw(SCHEDULE, 20)
BAD = 0
"""A batch that begins with this token is a bad one."""
FAULTS = {
    "loss nan": lambda total: total * jnp.nan,
    "loss inf": lambda total: total * jnp.inf,
    "loss alone": lambda total: total + jax.lax.stop_gradient(jnp.inf * total),
    "gradient nan": lambda total: total + jnp.sqrt(0.0 * total),
    "gradient too large to square": lambda total: (
        total + 1e25 * (total - jax.lax.stop_gradient(total))
    ),
    "spike": lambda total: total * 100.0,
}


def batch(index: int, bad: bool = False) -> Batch:
    tokens = np.random.default_rng(index).integers(1, CONFIG.vocab_size, (2, 9))
    tokens[0, 0] = BAD if bad else 1
    return Batch(*map(jnp.asarray, (tokens[:, :-1], tokens[:, 1:], np.ones((2, 8), bool))))


def begin(fault: str, skip: bool = False) -> tuple[Any, Any]:
    """The jitted step of a table of bigrams, with a fault in bad batches, and its first state."""

    def objective(model: Any, part: Batch, key: Any) -> Any:
        total, count = cross_entropy(model(part.inputs), part.targets, part.mask)
        bad = jnp.any(part.inputs[:, 0] == BAD)
        return jax.lax.cond(bad, FAULTS[fault], lambda total: total, total), count

    table = nnx.Embed(CONFIG.vocab_size, CONFIG.vocab_size, rngs=nnx.Rngs(0))
    graphdef, state = nnx.split(table, nnx.Param)
    params = nnx.to_pure_dict(state)
    spikes = SpikeConfig(deviations=6.0, skip=skip)
    train_step = step.make_train_step(graphdef, objective, RULE, None, 2, spikes)
    return jax.jit(train_step), step.init_state(params, RULE)


def counts(state: step.TrainState) -> tuple[int, int]:
    """Of steps, of Adam's updates."""
    return int(state.step), int(optax.tree.get(state.opt_state, "count"))


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault != "spike"])
def test_a_bad_update_changes_no_parameter_and_no_moment(fault: str) -> None:
    train_step, state = begin(fault)
    for i in range(2):
        state, metrics = train_step(state, batch(i))
        assert not metrics.skipped
    after, metrics = train_step(state, batch(2, bad=True))
    assert metrics.skipped
    moments = [optax.tree.get(s.opt_state, "mu") for s in (state, after)]
    squares = [optax.tree.get(s.opt_state, "nu") for s in (state, after)]
    stats = [s.loss_stats for s in (state, after)]
    for one, other in ((state.params, after.params), moments, squares, stats):
        assert state_hash(one) == state_hash(other)
    # The step counts for data, dropout and schedule; the moments hold two gradients, not three.
    assert counts(state) == (2, 2)
    assert counts(after) == (3, 2)
    later, metrics = train_step(after, batch(3))
    assert not metrics.skipped
    assert state_hash(later.params) != state_hash(after.params)
    assert counts(later) == (4, 3)


@pytest.mark.parametrize(("slices", "loops"), [(1, 0), (2, 1)])
def test_only_a_divided_batch_needs_a_loop(slices: int, loops: int) -> None:
    graphdef, shapes = abstract_model(GPT, CONFIG)
    train_step = step.make_train_step(graphdef, next_token, RULE, jax.random.key(1), slices)
    state = jax.eval_shape(lambda params: step.init_state(params, RULE), shapes)
    assert str(jax.make_jaxpr(train_step)(state, batch(0))).count("scan[") == loops


def test_without_bad_batches_the_guard_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    graphdef, _ = abstract_model(GPT, CONFIG)
    states = []
    for guard in (step.tree_where, lambda condition, new, old: new):
        monkeypatch.setattr(step, "tree_where", guard)
        pure_step = step.make_train_step(graphdef, next_token, RULE, jax.random.key(1), 2)
        train_step = jax.jit(pure_step, compiler_options=AS_USERS_COMPILE)
        state = step.init_state(init_params(GPT, CONFIG, jax.random.key(0)), RULE)
        for i in range(10):
            state, _ = train_step(state, batch(i))
        states.append(state_hash(state))
    assert states[0] == states[1]


@pytest.mark.parametrize("done", [0, 1, 2, 7, 19, 20])
def test_the_learning_rate_follows_from_the_step_alone(done: int) -> None:
    """theta_1 - theta_0 = -rate(step) direction, whatever Adam's count is."""
    train_step, state = begin("spike")
    first, _ = train_step(state, batch(0))
    later, metrics = train_step(state._replace(step=jnp.int32(done)), batch(0))
    rate, first_rate = (warmup_cosine(SCHEDULE, 20)(n) for n in (done, 0))
    np.testing.assert_allclose(metrics.learning_rate, rate, rtol=1e-6)
    moved, expected = (
        jax.tree.map(jnp.subtract, after.params, state.params) for after in (later, first)
    )
    for one, other in zip(jax.tree.leaves(moved), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other * (rate / first_rate), rtol=1e-3, atol=1e-7)


def settled(state: step.TrainState) -> step.TrainState:
    """The state after many losses of 4 ± 0.1."""
    stats = jax.tree.map(jnp.float32, LossStats(0.9 * WINDOW, 4.0, 0.01))
    return state._replace(loss_stats=stats)


def test_spikes_are_always_noted_and_only_if_configured_skipped() -> None:
    noting, first = begin("spike")
    skipping, _ = begin("spike", skip=True)
    for train_step in (noting, skipping):
        unsettled, metrics = train_step(first, batch(0, bad=True))
        assert not metrics.spike, "no statistics to compare with"
        assert not metrics.skipped
        assert unsettled.loss_stats.weight == 1.0
        assert unsettled.loss_stats.mean == metrics.loss
    state = settled(first)
    noted, metrics = noting(state, batch(0, bad=True))
    assert metrics.spike
    assert not metrics.skipped
    assert metrics.loss_stats == state.loss_stats
    assert noted.loss_stats.mean > 5.0
    after, metrics = skipping(state, batch(0, bad=True))
    assert metrics.spike
    assert metrics.skipped
    assert metrics.loss > 100
    assert state_hash(after.params) == state_hash(state.params)
    assert state_hash(after.loss_stats) == state_hash(state.loss_stats)
    after, metrics = skipping(state, batch(0))
    assert not metrics.spike
    assert not metrics.skipped
    assert after.loss_stats.weight > state.loss_stats.weight
    assert state_hash(after) == state_hash(noting(state, batch(0))[0])
