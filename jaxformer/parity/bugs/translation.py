"""Bugs planted in how encoder-decoders are trained."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxformer.parity.bugs.training import filled_with_ones, updates_scaled
from jaxformer.parity.engine.cases import Case
from jaxformer.parity.engine.mutation import SMALL, Bug, Plant, batch_changed, patched
from jaxformer.parity.proofs.losses import (
    prove_chunked_kl,
    prove_chunked_smoothing,
    prove_label_smoothing_kl,
    prove_smoothed_cross_entropy,
)
from jaxformer.parity.proofs.optimizers import prove_adam, prove_adam_clipped, prove_noam
from jaxformer.parity.proofs.training import prove_objective
from jaxformer.parity.proofs.transformer import transformer_case
from jaxformer.training import chunks, loss, objectives, optimizer, schedule

PAIRS: Case = transformer_case(SMALL)


def smoothed_by(share: Callable[[int], float]) -> Callable[..., Any]:
    """PyTorch's smoothing with another share of eps for each token but the target."""

    def smoothed(logits: Any, targets: Any, mask: Any, smoothing: float) -> Any:
        log_probs = jax.nn.log_softmax(logits)
        V = logits.shape[-1]
        at_target = jnp.arange(V) == targets[..., None]
        q = jnp.where(at_target, 1 - smoothing, smoothing * share(V))
        return loss.masked_sum(-(q * log_probs).sum(-1), mask)

    return lambda _: smoothed


def over_padding(function: Callable[..., Any]) -> Callable[..., Any]:
    """The smoothed part of the loss summed over all positions, the rest over real tokens."""

    def smoothed(logits: Any, targets: Any, mask: Any, smoothing: float) -> Any:
        total, count = function(logits, targets, mask, smoothing)
        rest = -smoothing * jax.nn.log_softmax(logits).mean(-1)
        return total + jnp.where(mask, 0.0, rest).sum(), count

    return smoothed


def padding_counted(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args: (function(*args)[0], jnp.asarray(args[2].size))


def without_entropy(logits: Any, targets: Any, mask: Any, smoothing: float, padding_id: int) -> Any:
    """-sum_v q_v log p_v, the cross-entropy of the KL divergence's q."""
    V = logits.shape[-1]
    q = jnp.where(jnp.arange(V) == targets[..., None], 1 - smoothing, smoothing / (V - 2))
    q = q.at[..., padding_id].set(0.0)
    return loss.masked_sum(-(q * jax.nn.log_softmax(logits)).sum(-1), mask)


def mass_on_padding(function: Callable[..., Any]) -> Callable[..., Any]:
    # No token has the id V, so none is left out.
    return lambda logits, targets, mask, smoothing, padding: function(
        logits, targets, mask, smoothing, logits.shape[-1]
    )


def reversed_kl(logits: Any, targets: Any, mask: Any, smoothing: float, padding_id: int) -> Any:
    """KL(p || q), padding left out of both."""
    V = logits.shape[-1]
    q = jnp.where(jnp.arange(V) == targets[..., None], 1 - smoothing, smoothing / (V - 2))
    log_probs = jax.nn.log_softmax(logits)
    each = (jnp.exp(log_probs) * (log_probs - jnp.log(q))).at[..., padding_id].set(0.0)
    return loss.masked_sum(each.sum(-1), mask)


def translation_given(change: Callable[[Any], Any]) -> Plant:
    """The objective of another batch."""
    return patched(
        objectives, "translation", lambda f: lambda *options: batch_changed(change)(f(*options))
    )


def scheduled(rate: Callable[[Any, int, Any], Any]) -> Plant:
    """`noam` by another formula of the config, the width and the step, counted from 1."""
    return patched(
        schedule, "noam", lambda _: lambda config, width: lambda s: rate(config, width, s + 1.0)
    )


WITHOUT_CORRECTION = patched(
    optax.tree, "bias_correction", lambda _: lambda moment, decay, count: moment
)


def updates_scaled_by(factor: float) -> Plant:
    return patched(optimizer, "adam", updates_scaled(factor))


def with_config(**fields: Any) -> Plant:
    """Adam of another config."""
    return patched(
        optimizer,
        "adam",
        lambda f: lambda config, width: f(dataclasses.replace(config, **fields), width),
    )


BUGS = [
    Bug(
        "smoothing by eps/(V-1)",
        "smoothed_cross_entropy",
        patched(loss, "smoothed_cross_entropy", smoothed_by(lambda V: 1 / (V - 1))),
        prove_smoothed_cross_entropy,
    ),
    Bug(
        "smoothing by eps/(V-2) in PyTorch's form",
        "smoothed_cross_entropy",
        patched(loss, "smoothed_cross_entropy", smoothed_by(lambda V: 1 / (V - 2))),
        prove_smoothed_cross_entropy,
    ),
    Bug(
        "smoothing over padding",
        "smoothed_cross_entropy",
        patched(loss, "smoothed_cross_entropy", over_padding),
        prove_smoothed_cross_entropy,
    ),
    Bug(
        "padding counted in the smoothed mean",
        "smoothed_cross_entropy",
        patched(loss, "smoothed_cross_entropy", padding_counted),
        prove_smoothed_cross_entropy,
    ),
    Bug(
        "smoothing divided among the chunks",
        "chunked_smoothing",
        patched(loss, "smoothed_cross_entropy", lambda f: lambda *a: f(*a[:3], a[3] / 4)),
        prove_chunked_smoothing,
    ),
    Bug(
        "KL divergence of the tokens that fill the last chunk added",
        "chunked_kl",
        patched(chunks, "cut", lambda _: filled_with_ones),
        prove_chunked_kl,
    ),
    Bug(
        "smoothing missing",
        "translation",
        patched(objectives, "smoothed_cross_entropy", lambda f: lambda *a: f(*a[:3], 0.0)),
        prove_objective,
        PAIRS,
    ),
    Bug(
        "KL divergence without the entropy of q",
        "label_smoothing_kl",
        patched(loss, "label_smoothing_kl", lambda _: without_entropy),
        prove_label_smoothing_kl,
    ),
    Bug(
        "KL divergence the other way round",
        "label_smoothing_kl",
        patched(loss, "label_smoothing_kl", lambda _: reversed_kl),
        prove_label_smoothing_kl,
    ),
    Bug(
        "mass on the padding token",
        "label_smoothing_kl",
        patched(loss, "label_smoothing_kl", mass_on_padding),
        prove_label_smoothing_kl,
    ),
    Bug(
        "padding counted in the mean KL divergence",
        "label_smoothing_kl",
        patched(loss, "label_smoothing_kl", padding_counted),
        prove_label_smoothing_kl,
    ),
    Bug(
        "Noam's schedule from step 0",
        "noam",
        patched(schedule, "noam", lambda f: lambda *a: lambda s: f(*a)(s - 1)),
        prove_noam,
    ),
    Bug(
        "inverse root missing after the warm-up",
        "noam",
        scheduled(
            lambda c, D, s: (
                c.factor * D**-0.5 * jnp.minimum(c.warmup_steps**-0.5, s * c.warmup_steps**-1.5)
            )
        ),
        prove_noam,
    ),
    Bug(
        "warm-up with w^-0.5",
        "noam",
        scheduled(
            lambda c, D, s: c.factor * D**-0.5 * jnp.minimum(s**-0.5, s * c.warmup_steps**-0.5)
        ),
        prove_noam,
    ),
    Bug(
        "schedule with D^0.5",
        "noam",
        patched(schedule, "noam", lambda f: lambda c, D: lambda s: D * f(c, D)(s)),
        prove_noam,
    ),
    Bug(
        "Adam one step ahead of its schedule",
        "adam",
        patched(optimizer, "noam", lambda f: lambda *a: lambda s: f(*a)(s + 1)),
        prove_adam,
    ),
    Bug("Adam with beta2 0.999", "adam", with_config(beta2=0.999), prove_adam),
    Bug("Adam with epsilon 1e-8", "adam", with_config(epsilon=1e-8), prove_adam),
    Bug("Adam without bias correction", "adam", WITHOUT_CORRECTION, prove_adam),
    Bug("Adam's update skipped", "adam", updates_scaled_by(0.0), prove_adam),
    Bug("Adam clipped where 2017 does not", "adam", with_config(clip_norm=1.0), prove_adam),
    Bug("Adam not clipped", "adam", with_config(clip_norm=None), prove_adam_clipped),
    Bug(
        "target not shifted",
        "translation",
        translation_given(lambda batch: batch._replace(inputs=batch.targets)),
        prove_objective,
        PAIRS,
    ),
    Bug(
        "start token counted as a target",
        "translation",
        translation_given(lambda batch: batch._replace(targets=batch.inputs)),
        prove_objective,
        PAIRS,
    ),
    Bug(
        "padding of the source learned from",
        "translation",
        translation_given(
            lambda batch: batch._replace(source_valid=jnp.ones_like(batch.source_valid))
        ),
        prove_objective,
        PAIRS,
    ),
    Bug(
        "end token not learned",
        "translation",
        translation_given(
            lambda batch: batch._replace(mask=batch.mask & (batch.targets != batch.targets.max()))
        ),
        prove_objective,
        PAIRS,
    ),
]
