"""The train step and the evaluation step: pure functions of a state and a batch.

What is learned is an objective (jaxformer/training/objectives.py) and its kind of batch, whose
arrays all have their rows on the first axis. A batch may be cut into accumulation slices that are
scanned one after the other. Losses and gradients are summed over all tokens that count and divided
once, so the result equals that of the whole batch at once, however it is cut.

The schedule is evaluated here, at `state.step`, and nowhere else. A step whose loss or gradient is
not finite leaves parameters and moments as they are, and so does a spike if the config skips
spikes; the choice is made on the device, without a host synchronisation. Such a step still counts:
the next one takes the next batch, the next dropout key and the next learning rate.
Adam's own count, which corrects the bias of moments, does not move. The twin leaves out
`optimizer.step()`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from jaxformer.config import SpikeConfig
from jaxformer.layers.dropout import step_key
from jaxformer.layers.precision import reduction_dtype
from jaxformer.models.functional import merge
from jaxformer.training.loss import SumAndCount
from jaxformer.training.objectives import Objective
from jaxformer.training.optimizer import Optimizer
from jaxformer.training.spikes import LossStats, is_spike, update_stats

NOTE_SPIKES = SpikeConfig()
"""Spikes are noted, none is skipped."""


class TrainState(NamedTuple):
    """All that a step changes."""

    step: Int[Array, ""]
    """Steps done, skipped ones included."""
    params: PyTree[Array]
    opt_state: PyTree[Array]
    """Adam's count and moments."""
    loss_stats: LossStats
    """Of the losses of all steps that were not skipped, in float32."""


class Metrics(NamedTuple):
    """What a step reports."""

    loss: Float[Array, ""]
    """The objective's mean, in nats per token."""
    grad_norm: Float[Array, ""]
    """Before clipping."""
    learning_rate: Float[Array, ""]
    loss_stats: LossStats
    """Of the losses before this one, by which it is a spike or not."""
    spike: Bool[Array, ""]
    skipped: Bool[Array, ""]
    """Whether parameters and moments stayed as they were."""


TrainStep = Callable[[TrainState, Any], tuple[TrainState, Metrics]]


def init_state(params: PyTree[Array], optimizer: Optimizer) -> TrainState:
    """The state before the first step."""
    opt_state = optimizer.direction.init(params)
    loss_stats = jax.tree.map(jnp.float32, LossStats())
    return TrainState(jnp.zeros((), jnp.int32), params, opt_state, loss_stats)


def slice_key(key: Key[Array, ""], index: Int[Array, ""] | int) -> Key[Array, ""]:
    """The dropout key of one accumulation slice: slices must not share their masks."""
    return jax.random.fold_in(key, index)


def make_train_step(
    graphdef: nnx.GraphDef,
    objective: Objective,
    optimizer: Optimizer,
    dropout: Key[Array, ""] | None,
    accumulation: int = 1,
    spikes: SpikeConfig = NOTE_SPIKES,
) -> TrainStep:
    """The pure function (state, batch) -> (state, metrics) of a model and what it is to learn.

    `dropout` is the key of the run's dropout; None turns it off. Slice a of step s takes every
    `accumulation`-th row from row a on; its dropout key is slice_key(step_key(dropout, s), a).
    A loss more than `spikes.deviations` standard deviations above the mean of those before it is
    reported as a spike, and skipped if `spikes.skip` is set.
    """

    def summed_loss(params: PyTree, batch: Any, dropout_key: Key[Array, ""] | None) -> SumAndCount:
        return objective(merge(graphdef, params), batch, dropout_key)

    def train_step(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        key = None if dropout is None else step_key(dropout, state.step)

        loss_type = reduction_dtype(jax.tree.leaves(state.params)[0].dtype)

        def slice_sums(index: Int[Array, ""] | int, part: Any) -> tuple:
            part_key = None if key is None else slice_key(key, index)
            value_and_grad = jax.value_and_grad(summed_loss, has_aux=True)
            (loss, count), grads = value_and_grad(state.params, part, part_key)
            return loss.astype(loss_type), count, grads

        def add_slice(sums: tuple, indexed: tuple[Array, Any]) -> tuple[tuple, None]:
            return jax.tree.map(jnp.add, sums, slice_sums(*indexed)), None

        if accumulation == 1:  # needs neither a loop nor sums that start from zero
            return apply_gradients(state, slice_sums(0, batch), optimizer, spikes)
        zeros = jax.tree.map(jnp.zeros_like, state.params)
        sums = (jnp.zeros((), loss_type), jnp.zeros((), jnp.int32), zeros)
        # Strided slices: each has rows from every device of a batch sharded by rows.
        slices = jax.tree.map(
            lambda x: x.reshape(-1, accumulation, *x.shape[1:]).swapaxes(0, 1), batch
        )
        sums, _ = jax.lax.scan(add_slice, sums, (jnp.arange(accumulation), slices))
        return apply_gradients(state, sums, optimizer, spikes)

    return train_step


def apply_gradients(
    state: TrainState,
    sums: tuple[Float[Array, ""], Int[Array, ""], PyTree[Array]],
    optimizer: Optimizer,
    spikes: SpikeConfig = NOTE_SPIKES,
) -> tuple[TrainState, Metrics]:
    """One step by the sums of a whole batch, its loss, tokens and gradients; divides them here."""
    loss, count, grads = sums
    tokens = jnp.maximum(count, 1).astype(loss.dtype)
    grads = jax.tree.map(lambda g: g / tokens.astype(g.dtype), grads)
    loss, norm = loss / tokens, optax.tree.norm(grads)
    step, old_params, old_opt_state, stats = state

    is_finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    spike = jnp.isfinite(loss) & is_spike(stats, loss.astype(jnp.float32), spikes.deviations)
    apply_update = is_finite & ~spike if spikes.skip else is_finite

    rate = jnp.asarray(optimizer.learning_rate(step))
    direction, opt_state = optimizer.direction.update(grads, old_opt_state, old_params)
    updates = jax.tree.map(lambda d: -rate.astype(d.dtype) * d, direction)
    new = (
        optax.apply_updates(old_params, updates),
        opt_state,
        update_stats(stats, loss.astype(jnp.float32)),
    )
    chosen = tree_where(apply_update, new, (old_params, old_opt_state, stats))
    return TrainState(step + 1, *chosen), Metrics(loss, norm, rate, stats, spike, ~apply_update)


def tree_where(condition: Bool[Array, ""], new: PyTree, old: PyTree) -> PyTree:
    """The leaves of `new` where the condition holds, else those of `old`."""
    return jax.tree.map(lambda n, o: jnp.where(condition, n, o), new, old)


def make_eval_step(
    graphdef: nnx.GraphDef, objective: Objective
) -> Callable[[PyTree[Array], Any], SumAndCount]:
    """The pure function (params, batch) -> (summed loss in nats, number of tokens), dropout off."""

    def eval_step(params: PyTree, batch: Any) -> SumAndCount:
        return objective(merge(graphdef, params), batch, None)

    return eval_step
