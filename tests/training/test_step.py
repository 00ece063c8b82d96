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
from jaxformer.config import GPT_PRESETS, OptimizerConfig
from jaxformer.models.functional import abstract_model, init_params
from jaxformer.models.gpt import GPT
from jaxformer.training import step
from jaxformer.training.loss import cross_entropy
from jaxformer.training.objectives import next_token
from jaxformer.training.optimizer import adamw
from jaxformer.training.spikes import WINDOW, LossStats

CONFIG = dataclasses.replace(GPT_PRESETS["toy"], num_layers=1, dropout_rate=0.1)
RULE = adamw(OptimizerConfig(warmup_steps=2), 20)
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


def begin(fault: str, skip_spikes: bool = False) -> tuple[Any, Any]:
    """The jitted step of a table of bigrams, with a fault in bad batches, and its first state."""

    def objective(model: Any, part: Batch, key: Any) -> Any:
        total, count = cross_entropy(model(part.inputs), part.targets, part.mask)
        bad = jnp.any(part.inputs[:, 0] == BAD)
        return jax.lax.cond(bad, FAULTS[fault], lambda total: total, total), count

    table = nnx.Embed(CONFIG.vocab_size, CONFIG.vocab_size, rngs=nnx.Rngs(0))
    graphdef, state = nnx.split(table, nnx.Param)
    params = nnx.to_pure_dict(state)
    train_step = step.make_train_step(graphdef, objective, RULE, None, 2, spike_deviations=6.0)
    return jax.jit(train_step), step.init_state(params, RULE, skip_spikes)


def counts(state: step.TrainState) -> tuple[int, int, int]:
    """Of steps, of the schedule, of Adam."""
    _, (adam, _, schedule) = state.opt_state
    assert isinstance(adam, optax.ScaleByAdamState)
    assert isinstance(schedule, optax.ScaleByScheduleState)
    return int(state.step), int(schedule.count), int(adam.count)


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
    for one, other in ((state.params, after.params), moments, squares):
        assert state_hash(one) == state_hash(other)
    # Data, dropout and schedule go on; the moments have seen two gradients, not three.
    assert counts(state) == (2, 2, 2)
    assert counts(after) == (3, 3, 2)
    later, metrics = train_step(after, batch(3))
    assert not metrics.skipped
    assert state_hash(later.params) != state_hash(after.params)
    assert counts(later) == (4, 4, 3)


def test_without_bad_batches_the_guard_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    graphdef, _ = abstract_model(GPT, CONFIG)
    states = []
    for guard in (step.tree_where, lambda sound, new, old: new):
        monkeypatch.setattr(step, "tree_where", guard)
        train_step = jax.jit(step.make_train_step(graphdef, next_token, RULE, jax.random.key(1), 2))
        state = step.init_state(init_params(GPT, CONFIG, jax.random.key(0)), RULE)
        for i in range(10):
            state, _ = train_step(state, batch(i))
        states.append(state_hash(state))
    assert states[0] == states[1]


def remembering(state: step.TrainState) -> step.TrainState:
    """The state after many losses of 4 ± 0.1."""
    losses = jax.tree.map(jnp.float32, LossStats(0.9 * WINDOW, 4.0, 0.01))
    return state._replace(opt_state=state.opt_state._replace(losses=losses))


def test_a_spike_is_skipped_only_if_asked_and_remembered_only_if_not_skipped() -> None:
    heedless, plain = begin("spike")
    _, metrics = heedless(plain, batch(0, bad=True))
    assert not metrics.skipped
    train_step, first = begin("spike", skip_spikes=True)
    unsettled, metrics = train_step(first, batch(0, bad=True))
    assert not metrics.skipped, "nothing to measure it by"
    assert unsettled.opt_state.losses.weight == 1.0
    state = remembering(first)
    after, metrics = train_step(state, batch(0, bad=True))
    assert metrics.skipped
    assert metrics.loss > 100
    assert state_hash(after.params) == state_hash(state.params)
    assert state_hash(after.opt_state.losses) == state_hash(state.opt_state.losses)
    after, metrics = train_step(state, batch(0))
    assert not metrics.skipped
    assert after.opt_state.losses.weight > state.opt_state.losses.weight
    assert state_hash(after.params) == state_hash(heedless(plain, batch(0))[0].params)
