"""The train step and the evaluation step: pure functions of a state and a batch.

A batch may be cut into accumulation slices that are scanned one after the other. Losses and
gradients are summed over all real tokens and divided once, so each slice weighs by its tokens and
the result is that of the whole batch at once.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, Key, PyTree

from jaxformer.batch import Batch
from jaxformer.layers.dropout import step_key
from jaxformer.models.pure import bind
from jaxformer.training.loss import cross_entropy


class TrainState(NamedTuple):
    """All that a step changes."""

    step: Int[Array, ""]
    params: PyTree[Array]
    opt_state: PyTree[Array]


class Metrics(NamedTuple):
    """What a step reports: mean loss in nats per token, and the gradient's norm before clipping."""

    loss: Float[Array, ""]
    grad_norm: Float[Array, ""]


TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def init_state(params: PyTree[Array], optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step."""
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))


def slice_key(key: Key[Array, ""], index: Int[Array, ""]) -> Key[Array, ""]:
    """The dropout key of one accumulation slice: slices must not share their masks."""
    return jax.random.fold_in(key, index)


def make_train_step(
    graph: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    dropout: Key[Array, ""] | None,
    accumulation: int = 1,
) -> TrainStep:
    """The pure function (state, batch) -> (state, metrics) of a model that maps tokens to logits.

    `dropout` is the key of the run's dropout; None turns it off. Slice a of step s takes every
    `accumulation`-th row from row a on, and drops by the key slice_key(step_key(dropout, s), a).
    """

    def summed_loss(
        params: PyTree, batch: Batch, dropout_key: Key[Array, ""] | None
    ) -> tuple[Array, Array]:
        logits_BLV = bind(graph, params)(batch.inputs, dropout_key=dropout_key)
        return cross_entropy(logits_BLV, batch.targets, batch.mask)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = None if dropout is None else step_key(dropout, state.step)

        def add_slice(sums: tuple, slice_index: tuple[Array, Batch]) -> tuple[tuple, None]:
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
        loss, count, grads = sums

        tokens = jnp.maximum(count, 1).astype(loss.dtype)
        grads = jax.tree.map(lambda g: g / tokens.astype(g.dtype), grads)
        metrics = Metrics(loss / tokens, optax.tree.norm(grads))
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, params, opt_state), metrics

    return train_step


def make_eval_step(
    graph: nnx.GraphDef,
) -> Callable[[PyTree[Array], Batch], tuple[Float[Array, ""], Int[Array, ""]]]:
    """The pure function (params, batch) -> (summed loss in nats, number of tokens), dropout off."""

    def eval_step(params: PyTree, batch: Batch) -> tuple[Array, Array]:
        logits_BLV = bind(graph, params)(batch.inputs)
        return cross_entropy(logits_BLV, batch.targets, batch.mask)

    return eval_step
