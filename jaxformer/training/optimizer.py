"""AdamW as GPTs are trained with it, also beside Muon, and Adam as the Transformer of 2017 was.

Equal to torch.nn.utils.clip_grad_norm_ followed by torch.optim.AdamW with two parameter groups, and
to torch.optim.Adam.
"""

import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from jaxformer.config import NoamConfig, OptimizerConfig
from jaxformer.models.functional import leaf_path
from jaxformer.models.stacked import is_stacked
from jaxformer.training.muon import scale_by_muon
from jaxformer.training.schedule import noam, warmup_cosine, warmup_stable_decay


class Optimizer(NamedTuple):
    """theta <- theta - learning_rate(step) direction(gradient, theta), see `apply_gradients`."""

    direction: optax.GradientTransformation
    """From a gradient to the direction that is subtracted; keeps moments, knows no rate."""
    learning_rate: optax.Schedule
    """From the number of steps before this one to its rate."""


def text_optimizer(config: OptimizerConfig, steps: int) -> Optimizer:
    """What the config names: `adamw` or `muon`, under its schedule."""
    make = muon if config.kernels == "muon" else adamw
    schedule = warmup_stable_decay if config.schedule == "stable" else warmup_cosine
    return make(config, steps)._replace(learning_rate=schedule(config, steps))


def adamw(config: OptimizerConfig, steps: int) -> Optimizer:
    """theta <- theta - lr (m / (sqrt(v) + epsilon) + decay theta), with bias-corrected moments.

    Loshchilov & Hutter 2019, algorithm 2, line 12, with the decay on matrices only and the gradient
    clipped before the moments are updated. `warmup_cosine` over `steps` gives the rate.
    """
    direction = optax.chain(
        clip_by_global_norm(config.clip_norm),
        optax.scale_by_adam(b1=config.beta1, b2=config.beta2, eps=config.epsilon),
        optax.add_decayed_weights(config.weight_decay, is_matrix),
    )
    return Optimizer(direction, warmup_cosine(config, steps))


def muon(config: OptimizerConfig, steps: int) -> Optimizer:
    """`adamw` with Muon's direction in place of Adam's for the kernels between hidden states."""
    rules = {
        "muon": scale_by_muon(config.momentum),
        "adam": optax.scale_by_adam(b1=config.beta1, b2=config.beta2, eps=config.epsilon),
    }

    def rule_of(params: PyTree) -> PyTree[str]:
        return jax.tree.map(
            lambda is_kernel: "muon" if is_kernel else "adam", is_hidden_kernel(params)
        )

    direction = optax.chain(
        clip_by_global_norm(config.clip_norm),
        optax.partition(rules, rule_of),
        optax.add_decayed_weights(config.weight_decay, is_matrix),
    )
    return Optimizer(direction, warmup_cosine(config, steps))


def adam(config: NoamConfig, width: int) -> Optimizer:
    """theta <- theta - lr m / (sqrt(v) + epsilon), with bias-corrected moments and `noam`'s rate.

    Kingma & Ba 2015, algorithm 1; Vaswani et al. 2017, section 5.3. The gradient is clipped before
    the moments are updated, if the config says so.
    """
    clip = optax.identity() if config.clip_norm is None else clip_by_global_norm(config.clip_norm)
    moments = optax.scale_by_adam(b1=config.beta1, b2=config.beta2, eps=config.epsilon)
    return Optimizer(optax.chain(clip, moments), noam(config, width))


def is_matrix(params: PyTree) -> PyTree[bool]:
    """True for leaves that are decayed: kernels and embeddings, not biases and norm scales.

    The axis of stacked layers does not count.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf.ndim - is_stacked(leaf_path(path)) >= 2, params
    )


def is_hidden_kernel(params: PyTree) -> PyTree[bool]:
    """True for the matrices between hidden states: not for embeddings and the output head."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: re.search(r"(?<!\boutput/)\bkernel$", leaf_path(path)) is not None, params
    )


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
    """g <- g min(1, max_norm / (||g|| + 1e-6)) (Pascanu et al. 2013, algorithm 1).

    The 1e-6 is torch.nn.utils.clip_grad_norm_'s; optax's own clip has none, which is a relative
    difference of 1e-6 in every clipped gradient.
    """

    def update(
        grads: PyTree, state: optax.EmptyState, params: PyTree | None = None
    ) -> tuple[PyTree, optax.EmptyState]:
        scale = jnp.minimum(1.0, max_norm / (optax.tree.norm(grads) + 1e-6))
        return jax.tree.map(lambda g: g * scale.astype(g.dtype), grads), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
