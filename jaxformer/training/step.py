"""The train step and the evaluation step: pure functions of a state and a batch.

What is learned is an objective (jaxformer/training/objectives.py) and its kind of batch, whose
arrays all have their rows on the first axis. A batch may be cut into accumulation slices that are
scanned one after the other. Losses and gradients are summed over all tokens that count and divided
once, so each slice weighs by its tokens and the result is that of the whole batch at once.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, Key, PyTree

from jaxformer.layers.dropout import step_key
from jaxformer.models.pure import bind
from jaxformer.training.loss import SumAndCount
from jaxformer.training.objectives import Objective


class TrainState(NamedTuple):
    """All that a step changes."""

    step: Int[Array, ""]
    params: PyTree[Array]
    opt_state: PyTree[Array]


class Metrics(NamedTuple):
    """What a step reports: the objective's mean a token, the gradient's norm before clipping."""

    loss: Float[Array, ""]
    grad_norm: Float[Array, ""]


TrainStep = Callable[[TrainState, Any], tuple[TrainState, Metrics]]


def init_state(params: PyTree[Array], optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step."""
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))


def slice_key(key: Key[Array, ""], index: Int[Array, ""]) -> Key[Array, ""]:
    """The dropout key of one accumulation slice: slices must not share their masks."""
    return jax.random.fold_in(key, index)


def make_train_step(
    graph: nnx.GraphDef,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    dropout: Key[Array, ""] | None,
    accumulation: int = 1,
) -> TrainStep:
    """The pure function (state, batch) -> (state, metrics) of a model and what it is to learn.

    `dropout` is the key of the run's dropout; None turns it off. Slice a of step s takes every
    `accumulation`-th row from row a on, and drops by the key slice_key(step_key(dropout, s), a).
    """

    def summed_loss(params: PyTree, batch: Any, dropout_key: Key[Array, ""] | None) -> SumAndCount:
        return objective(bind(graph, params), batch, dropout_key)

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
        return apply_sums(state, sums, optimizer)

    return train_step


def apply_sums(
    state: TrainState,
    sums: tuple[Float[Array, ""], Int[Array, ""], PyTree[Array]],
    optimizer: optax.GradientTransformation,
) -> tuple[TrainState, Metrics]:
    """One update by the loss, tokens and gradients summed over a whole batch, divided here."""
    loss, count, grads = sums
    tokens = jnp.maximum(count, 1).astype(loss.dtype)
    grads = jax.tree.map(lambda g: g / tokens.astype(g.dtype), grads)
    metrics = Metrics(loss / tokens, optax.tree.norm(grads))
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return TrainState(state.step + 1, params, opt_state), metrics


def make_eval_step(
    graph: nnx.GraphDef, objective: Objective
) -> Callable[[PyTree[Array], Any], SumAndCount]:
    """The pure function (params, batch) -> (summed loss in nats, number of tokens), dropout off."""

    def eval_step(params: PyTree, batch: Any) -> SumAndCount:
        return objective(bind(graph, params), batch, None)

    return eval_step
