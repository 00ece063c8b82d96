"""Bugs planted in the loss, the schedule, the optimizer and the train step."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from jaxformer import checkpoint
from jaxformer.checkpoint import OPTIMIZER
from jaxformer.layers import stacks
from jaxformer.parity.engine.mutation import SMALL, Bug, patched
from jaxformer.parity.proofs.losses import (
    prove_accuracy,
    prove_chunked_cross_entropy,
    prove_cross_entropy,
)
from jaxformer.parity.proofs.optimizers import prove_clipping, prove_optimizer, prove_schedule
from jaxformer.parity.proofs.resume import prove_resume
from jaxformer.parity.proofs.training import (
    prove_accumulation,
    prove_remat,
    prove_scan,
    prove_step,
)
from jaxformer.training import chunks, loss, objectives, optimizer, schedule, step


def padding_counted(function: Callable[..., Any]) -> Callable[..., Any]:
    def cross_entropy(logits: Any, targets: Any, mask: Any) -> Any:
        total, _ = function(logits, targets, mask)
        return total, jnp.asarray(mask.size)

    return cross_entropy


def mean_of_slice(function: Callable[..., Any]) -> Callable[..., Any]:
    def cross_entropy(*args: Any) -> Any:
        total, count = function(*args)
        return total / count, jnp.ones_like(count)

    return cross_entropy


def tail_dropped(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda x, length: function(x[:, : x.shape[1] // length * length], length)


def filled_with_ones(x: jax.Array, length: int) -> jax.Array:
    """A cut whose last chunk is filled with tokens that count."""
    missing = -x.shape[1] % length
    filled = jnp.concatenate([x, jnp.ones_like(x[:, :missing])], axis=1)
    return jnp.stack(jnp.split(filled, filled.shape[1] // length, axis=1))


def with_config(**fields: Any) -> Callable[[Any], Any]:
    """A function of an optimizer config that is given another."""
    return lambda function: (
        lambda config, steps: function(dataclasses.replace(config, **fields), steps)
    )


def clip_last(config: Any, steps: int) -> Any:
    direction = optax.chain(
        optax.scale_by_adam(config.beta1, config.beta2, config.epsilon),
        optimizer.clip_by_global_norm(config.clip_norm),
        optax.add_decayed_weights(config.weight_decay, optimizer.is_matrix),
    )
    return optimizer.Optimizer(direction, schedule.warmup_cosine(config, steps))


def coupled_decay(config: Any, steps: int) -> Any:
    direction = optax.chain(
        optimizer.clip_by_global_norm(config.clip_norm),
        optax.add_decayed_weights(config.weight_decay, optimizer.is_matrix),
        optax.scale_by_adam(config.beta1, config.beta2, config.epsilon),
    )
    return optimizer.Optimizer(direction, schedule.warmup_cosine(config, steps))


def clip_each(max_norm: float) -> optax.GradientTransformation:
    def update(grads: Any, state: Any, params: Any = None) -> Any:
        def clip(g: jax.Array) -> jax.Array:
            return g * jnp.minimum(1.0, max_norm / (jnp.linalg.norm(g) + 1e-6))

        return jax.tree.map(clip, grads), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def epsilon_in_root(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args, eps, **rest: function(*args, eps=0.0, eps_root=eps**2, **rest)


def updates_scaled(factor: float) -> Callable[[Any], Any]:
    """An optimizer whose updates are multiplied by a further factor."""

    def scaled(rule: optimizer.Optimizer) -> optimizer.Optimizer:
        return rule._replace(direction=optax.chain(rule.direction, optax.scale(factor)))

    return lambda function: lambda *args: scaled(function(*args))


def rate_of_the_next_step(function: Callable[..., Any]) -> Callable[..., Any]:
    def apply_gradients(state: Any, *rest: Any) -> Any:
        after, metrics = function(state._replace(step=state.step + 1), *rest)
        return after._replace(step=state.step + 1), metrics

    return apply_gradients


def step_lost(function: Callable[..., Any]) -> Callable[..., Any]:
    def restore(*args: Any) -> Any:
        items, found = function(*args)
        state = items[OPTIMIZER]
        return items | {OPTIMIZER: state._replace(step=jnp.zeros_like(state.step))}, found

    return restore


def recomputed_with_another_key(block: Any, remat: str) -> Callable[..., Any]:
    """A rematerialised block whose backward pass drops other units than its forward pass did."""
    graphdef, params = nnx.split(block)

    def output(params: Any, x: jax.Array, mask: Any, key: Any) -> jax.Array:
        return nnx.merge(graphdef, params)(x, mask, key)[0]

    def backward(saved: tuple, grad: jax.Array) -> tuple:
        params, x, mask, key = saved
        other = jax.random.fold_in(key, 1)
        _, gradients = jax.vjp(lambda params, x: output(params, x, mask, other), params, x)
        return (*gradients(grad), None, None)

    recomputed = jax.custom_vjp(output)
    recomputed.defvjp(lambda *inputs: (output(*inputs), inputs), backward)
    return lambda x, mask, key, *_: (recomputed(params, x, mask, key), None)


def of_the_first_layer(fold_path: Callable[..., Any]) -> Callable[..., Any]:
    return lambda key, name, index: fold_path(key, name, 0)


def last_layer_first(scan_blocks: Callable[..., Any]) -> Callable[..., Any]:
    def backwards(blocks: stacks.StackedBlocks, *inputs: Any) -> jax.Array:
        graphdef, params = nnx.split(blocks)
        params = jax.tree.map(jnp.flipud, params)
        return scan_blocks(nnx.merge(graphdef, params), *inputs)

    return backwards


TWO_LAYERS = SMALL.with_options(num_layers=2)

LOSS_BUGS = [
    Bug(
        "padding counted in the mean loss",
        "loss",
        patched(loss, "cross_entropy", padding_counted),
        prove_cross_entropy,
    ),
    Bug(
        "loss of padding added",
        "loss",
        patched(loss, "cross_entropy", lambda f: lambda x, t, m: (f(x, t, m | True)[0], m.sum())),
        prove_cross_entropy,
    ),
    Bug(
        "gradient of the target's logit stopped",
        "loss",
        patched(loss, "at_targets", lambda f: lambda x, t: jax.lax.stop_gradient(f(x, t))),
        prove_cross_entropy,
    ),
    Bug(
        "last tokens of an uneven cut dropped",
        "chunked_loss",
        patched(chunks, "cut", tail_dropped),
        prove_chunked_cross_entropy,
    ),
    Bug(
        "loss of what fills the last chunk added",
        "chunked_loss",
        patched(chunks, "cut", lambda _: filled_with_ones),
        prove_chunked_cross_entropy,
    ),
    Bug(
        "mean of each chunk for its sum",
        "chunked_loss",
        patched(loss, "cross_entropy", mean_of_slice),
        prove_chunked_cross_entropy,
    ),
    Bug(
        "gradient of the head from the last chunk alone",
        "chunked_loss",
        patched(chunks, "add_grads", lambda _: lambda grads, more: more),
        prove_chunked_cross_entropy,
    ),
    Bug(
        "padding counted in the accuracy",
        "accuracy",
        patched(loss, "accuracy", padding_counted),
        prove_accuracy,
    ),
    Bug(
        "right guesses of padding added",
        "accuracy",
        patched(loss, "accuracy", lambda f: lambda x, t, m: (f(x, t, m | True)[0], m.sum())),
        prove_accuracy,
    ),
]

ADAMW_BUGS = [
    Bug(
        "schedule one step ahead",
        "schedule",
        patched(schedule, "warmup_cosine", lambda f: lambda *a: lambda s: f(*a)(s + 1)),
        prove_schedule,
    ),
    Bug(
        "schedule decays to 0, not to the floor",
        "schedule",
        patched(schedule, "warmup_cosine", with_config(floor_learning_rate=0.0)),
        prove_schedule,
    ),
    Bug(
        "optimizer one step ahead of the schedule",
        "optimizer",
        patched(optimizer, "warmup_cosine", lambda f: lambda *a: lambda s: f(*a)(s + 1)),
        prove_optimizer,
    ),
    Bug(
        "step one ahead of the schedule",
        "optimizer",
        patched(step, "apply_gradients", rate_of_the_next_step),
        prove_optimizer,
    ),
    Bug(
        "decay on biases",
        "optimizer",
        patched(optimizer, "is_matrix", lambda _: lambda p: jax.tree.map(lambda x: True, p)),
        prove_optimizer,
    ),
    Bug(
        "decay missing",
        "optimizer",
        patched(optimizer, "adamw", with_config(weight_decay=0.0)),
        prove_optimizer,
    ),
    Bug(
        "decay inside the gradient (Adam with L2)",
        "optimizer",
        patched(optimizer, "adamw", lambda _: coupled_decay),
        prove_optimizer,
    ),
    Bug(
        "beta2 0.999",
        "optimizer",
        patched(optimizer, "adamw", with_config(beta2=0.999)),
        prove_optimizer,
    ),
    Bug(
        "epsilon inside the root",
        "optimizer",
        patched(optax, "scale_by_adam", epsilon_in_root),
        prove_optimizer,
    ),
    Bug(
        "bias correction missing",
        "optimizer",
        patched(optax.tree, "bias_correction", lambda _: lambda moment, decay, count: moment),
        prove_optimizer,
    ),
    Bug(
        "clipping after the moments",
        "optimizer",
        patched(optimizer, "adamw", lambda _: clip_last),
        prove_optimizer,
    ),
    Bug(
        "clipping missing",
        "optimizer",
        patched(optimizer, "clip_by_global_norm", lambda _: lambda norm: optax.identity()),
        prove_optimizer,
    ),
    Bug(
        "clipping without the 1e-6",
        "clipping",
        patched(optimizer, "clip_by_global_norm", lambda _: optax.clip_by_global_norm),
        prove_clipping,
    ),
    Bug(
        "each tensor clipped by its own norm",
        "clipping",
        patched(optimizer, "clip_by_global_norm", lambda _: clip_each),
        prove_clipping,
    ),
    Bug(
        "update skipped",
        "optimizer",
        patched(optimizer, "adamw", updates_scaled(0.0)),
        prove_optimizer,
    ),
    Bug(
        "update with the sign reversed",
        "optimizer",
        patched(optimizer, "adamw", updates_scaled(-1.0)),
        prove_optimizer,
    ),
]

STEP_BUGS = [
    Bug(
        "mean of the slices' means",
        "accumulation",
        patched(objectives, "cross_entropy", mean_of_slice),
        prove_accumulation,
        SMALL,
    ),
    Bug(
        "dropout the same at every step",
        "step",
        patched(step, "step_key", lambda _: lambda key, step: key),
        prove_step,
        SMALL,
    ),
    Bug(
        "dropout the same in every accumulation slice",
        "step",
        patched(step, "slice_key", lambda _: lambda key, index: key),
        prove_step,
        SMALL,
    ),
    Bug(
        "recomputed with another dropout key",
        "remat",
        patched(stacks, "maybe_remat", lambda _: recomputed_with_another_key),
        prove_remat,
        SMALL.with_options(remat="full"),
    ),
    Bug(
        "dropout the same in every scanned layer",
        "scan",
        patched(stacks, "fold_path", of_the_first_layer),
        prove_scan,
        TWO_LAYERS,
    ),
    Bug(
        "scanned from the last layer to the first",
        "scan",
        patched(stacks, "scan_blocks", last_layer_first),
        prove_scan,
        TWO_LAYERS,
    ),
    Bug(
        "stacked biases decayed",
        "scan",
        patched(optimizer, "is_stacked", lambda _: lambda path: False),
        prove_scan,
        TWO_LAYERS,
    ),
    Bug(
        "step counter lost at resume",
        "resume",
        patched(checkpoint, "restore", step_lost),
        prove_resume,
        SMALL,
    ),
]
