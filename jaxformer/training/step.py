"""The train step and the evaluation step: pure functions of a state and a batch.

What is learned is an objective (jaxformer/training/objectives.py) and its kind of batch, whose
arrays all have their rows on the first axis. A batch may be cut into accumulation slices that are
scanned one after the other. Losses and gradients are summed over all tokens that count and divided
once, so each slice weighs by its tokens and the result is that of the whole batch at once.

A step whose loss or gradient is not finite changes no parameter and no moment: both are chosen on
the device, so that nobody waits for the verdict. Such a step has taken its batch, its dropout key
and its place in the schedule all the same; only Adam's count of updates, which corrects the bias of
moments that did not move, stays. The twin leaves out `optimizer.step()`.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from jaxformer.layers.dropout import step_key
from jaxformer.models.functional import merge
from jaxformer.training.loss import SumAndCount
from jaxformer.training.objectives import Objective
from jaxformer.training.spikes import LossStats, is_spike, seen


class TrainState(NamedTuple):
    """All that a step changes."""

    step: Int[Array, ""]
    params: PyTree[Array]
    opt_state: PyTree[Array]
    """The optimizer's own, or `Watchful`."""


class Watchful(NamedTuple):
    """The optimizer's state where spikes are skipped, which takes the losses so far."""

    losses: LossStats
    optimizer: PyTree[Array]


class Metrics(NamedTuple):
    """What a step reports: the objective's mean a token, the gradient's norm before clipping."""

    loss: Float[Array, ""]
    grad_norm: Float[Array, ""]
    skipped: Bool[Array, ""]
    """Whether the update was left out."""


TrainStep = Callable[[TrainState, Any], tuple[TrainState, Metrics]]


def init_state(
    params: PyTree[Array], optimizer: optax.GradientTransformation, skip_spikes: bool = False
) -> TrainState:
    """The state before the first step; it remembers losses only if spikes are skipped by them."""
    opt_state = optimizer.init(params)
    if skip_spikes:
        opt_state = Watchful(jax.tree.map(jnp.float32, LossStats()), opt_state)
    return TrainState(jnp.zeros((), jnp.int32), params, opt_state)


def slice_key(key: Key[Array, ""], index: Int[Array, ""]) -> Key[Array, ""]:
    """The dropout key of one accumulation slice: slices must not share their masks."""
    return jax.random.fold_in(key, index)


def make_train_step(
    graphdef: nnx.GraphDef,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    dropout: Key[Array, ""] | None,
    accumulation: int = 1,
    spike_deviations: float = math.inf,
) -> TrainStep:
    """The pure function (state, batch) -> (state, metrics) of a model and what it is to learn.

    `dropout` is the key of the run's dropout; None turns it off. Slice a of step s takes every
    `accumulation`-th row from row a on, and drops by the key slice_key(step_key(dropout, s), a).
    A state that remembers losses skips those so many deviations above their mean.
    """

    def summed_loss(params: PyTree, batch: Any, dropout_key: Key[Array, ""] | None) -> SumAndCount:
        return objective(merge(graphdef, params), batch, dropout_key)

    def train_step(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        key = None if dropout is None else step_key(dropout, state.step)

        def add_slice(sums: tuple, slice_index: tuple[Array, Any]) -> tuple[tuple, None]:
            index, part = slice_index
            part_key = None if key is None else slice_key(key, index)
            value_and_grad = jax.value_and_grad(summed_loss, has_aux=True)
            (loss, count), grads = value_and_grad(state.params, part, part_key)
            return jax.tree.map(jnp.add, sums, (loss, count, grads)), None

        zeros = jax.tree.map(jnp.zeros_like, state.params)
        loss_type = jnp.promote_types(jax.tree.leaves(state.params)[0].dtype, jnp.float32)
        sums = (jnp.zeros((), loss_type), jnp.zeros((), jnp.int32), zeros)
        # Strided slices: each has rows from every device of a batch sharded by rows.
        slices = jax.tree.map(
            lambda x: x.reshape(-1, accumulation, *x.shape[1:]).swapaxes(0, 1), batch
        )
        sums, _ = jax.lax.scan(add_slice, sums, (jnp.arange(accumulation), slices))
        return apply_gradients(state, sums, optimizer, spike_deviations)

    return train_step


def apply_gradients(
    state: TrainState,
    sums: tuple[Float[Array, ""], Int[Array, ""], PyTree[Array]],
    optimizer: optax.GradientTransformation,
    spike_deviations: float = math.inf,
) -> tuple[TrainState, Metrics]:
    """One update by the loss, tokens and gradients summed over a whole batch, divided here."""
    loss, count, grads = sums
    tokens = jnp.maximum(count, 1).astype(loss.dtype)
    grads = jax.tree.map(lambda g: g / tokens.astype(g.dtype), grads)
    loss, norm = loss / tokens, optax.tree.norm(grads)
    sound = jnp.isfinite(loss) & jnp.isfinite(norm)
    old_params, old_state, losses = state.params, state.opt_state, None
    if isinstance(old_state, Watchful):
        losses, old_state = old_state
        sound &= ~is_spike(losses, loss.astype(jnp.float32), spike_deviations)
        losses = tree_where(sound, seen(losses, loss.astype(jnp.float32)), losses)
    updates, opt_state = optimizer.update(grads, old_state, old_params)
    params = tree_where(sound, optax.apply_updates(old_params, updates), old_params)
    opt_state = tree_where(sound, opt_state, old_state)
    if losses is not None:
        opt_state = Watchful(losses, opt_state)
    return TrainState(state.step + 1, params, opt_state), Metrics(loss, norm, ~sound)


def tree_where(sound: Bool[Array, ""], new: PyTree, old: PyTree) -> PyTree:
    """The new values if the step was sound, else the old; the schedule goes on in any case."""

    def is_schedule(node: Any) -> bool:
        return isinstance(node, optax.ScaleByScheduleState)

    def keep(new: Any, old: Any) -> Any:
        return new if is_schedule(new) else jnp.where(sound, new, old)

    return jax.tree.map(keep, new, old, is_leaf=is_schedule)


def make_eval_step(
    graphdef: nnx.GraphDef, objective: Objective
) -> Callable[[PyTree[Array], Any], SumAndCount]:
    """The pure function (params, batch) -> (summed loss in nats, number of tokens), dropout off."""

    def eval_step(params: PyTree, batch: Any) -> SumAndCount:
        return objective(merge(graphdef, params), batch, None)

    return eval_step
