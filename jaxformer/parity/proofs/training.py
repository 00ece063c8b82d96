"""Proofs of how GPTs are trained: loss, schedule, clipping, AdamW, slices of a batch, 100 steps."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from jaxformer.batch import Batch
from jaxformer.config import OptimizerConfig
from jaxformer.parity.engine.cases import Case
from jaxformer.parity.engine.settings import arithmetic
from jaxformer.parity.engine.steps import (
    SmallTwin,
    TrainingPair,
    bound_of,
    compare_steps,
    compare_updates,
    small_tree,
)
from jaxformer.parity.engine.twins import Proof, compare_functions, twin_config
from jaxformer.parity.proofs.gpt import GPT_TWINS
from jaxformer.porting.compare import Key, as_numpy, judge
from jaxformer.porting.locate import Comparison
from jaxformer.training import loss, objectives, optimizer, schedule
from torchref.training import loss as torch_loss
from torchref.training import objectives as torch_objectives
from torchref.training import optimizer as torch_optimizer
from torchref.training import schedule as torch_schedule

STEPS = 100
OPTIMIZER = OptimizerConfig(warmup_steps=10, clip_norm=0.5)
"""Clips most steps of a small model and warms up within the proof."""


def prove_loss(case: Case) -> Comparison:
    """The summed cross-entropy, its gradient, and the number of tokens it was summed over."""
    return compare_losses(
        case,
        "loss",
        lambda *arrays: loss.cross_entropy(*arrays),
        lambda *arrays: torch_loss.cross_entropy(*arrays),
        case.tokens("targets", case.batch, case.length),
    )


def compare_losses(
    case: Case,
    layer: str,
    function: Callable[..., Any],
    twin: Callable[..., Any],
    targets: np.ndarray,
) -> Comparison:
    """Functions of logits, targets and mask: sum, gradient and count, on drawn logits and mask."""
    logits = case.normal("logits", *targets.shape, case.config.vocab_size)
    arrays = logits, targets, case.rng("mask").random(targets.shape) < 0.7

    def inputs(case: Case) -> tuple[list, list]:
        return [*map(case.to_jax, arrays)], [*map(case.to_torch, arrays)]

    def with_count(function: Callable[..., Any], floating: Any) -> Any:
        def both(*args: Any) -> tuple[Any, Any]:
            total, count = function(*args)
            return total, floating(count)

        return both

    ours = with_count(function, lambda n: n.astype(float))
    return compare_functions(case, layer, ours, with_count(twin, lambda n: n.double()), inputs)


def prove_schedule(case: Case) -> Comparison:
    """The learning rate of every step and of some past the end, with the edges of the warm-up."""
    ours, theirs = {}, {}
    for warmup, steps in ((10, 100), (0, 10), (10, 10), (20, 10), (1, 2), (0, 1)):
        config = dataclasses.replace(OPTIMIZER, warmup_steps=warmup)
        count = np.arange(steps + 5)
        key = Key("schedule", "update", f"{warmup} of {steps} steps")
        with arithmetic(case.dtype):
            learning_rate = jax.vmap(schedule.warmup_cosine(config, steps))
            ours[key] = as_numpy(learning_rate(jnp.asarray(count)))
        rate = torch_schedule.warmup_cosine(twin_config(config), steps)
        theirs[key] = np.array([rate(int(s)) for s in count])
    return Comparison.of(judge(ours, theirs, bound_of("layer", case), case.dtype, "gpt"))


def prove_clipping(case: Case) -> Comparison:
    """Gradients above, at and below the largest norm."""
    grads = small_tree(case, "gradient")
    norm = float(np.sqrt(sum(np.sum(g**2) for g in grads.values())))
    ours, theirs = {}, {}
    for share in (0.1, 0.999999, 1.0, 10.0):
        with arithmetic(case.dtype):
            clip = optimizer.clip_by_global_norm(share * norm)
            tree = {name: case.to_jax(g) for name, g in grads.items()}
            clipped, _ = clip.update(tree, clip.init(tree))
        twin = SmallTwin(case, grads)
        for name, parameter in twin.named_parameters():
            parameter.grad = case.to_torch(grads[name])
        torch.nn.utils.clip_grad_norm_(twin.parameters(), share * norm)
        for name, parameter in twin.named_parameters():
            key = Key("clipping", "update", f"{name} at {share} of its norm")
            ours[key], theirs[key] = clipped[name], parameter.grad
    return Comparison.of(judge(ours, theirs, bound_of("layer", case), case.dtype, "gpt"))


def prove_optimizer(case: Case, steps: int = 12) -> Comparison:
    """Parameters and moments after some updates by given gradients, small and large."""
    config = twin_config(OPTIMIZER)
    with arithmetic(case.dtype):
        adamw = optimizer.adamw(OPTIMIZER, steps)
    return compare_updates(
        case,
        "optimizer",
        adamw,
        lambda twin: torch_optimizer.adamw(twin, config),
        torch_schedule.warmup_cosine(config, steps),
        OPTIMIZER.clip_norm,
        steps,
    )


def batch(case: Case, index: int) -> Batch:
    """Inputs, targets and mask of a training step; the two slices differ in their tokens."""
    rng = np.random.default_rng([case.seed, index])
    text = rng.integers(0, case.config.vocab_size, (2 * case.batch, case.length + 1))
    keep = np.where(np.arange(2 * case.batch) % 2 == 0, 0.95, 0.4)[:, None]
    mask = rng.random((2 * case.batch, case.length)) < keep
    return Batch(text[:, :-1], text[:, 1:], mask)


GPT_COURSE = TrainingPair(
    GPT_TWINS,
    batch,
    lambda *arguments: objectives.next_token(*arguments),
    torch_objectives.next_token,
    lambda case, steps: optimizer.adamw(OPTIMIZER, steps),
    lambda twin: torch_optimizer.adamw(twin, twin_config(OPTIMIZER)),
    lambda case, steps: torch_schedule.warmup_cosine(twin_config(OPTIMIZER), steps),
    OPTIMIZER.clip_norm,
)


def prove_accumulation(case: Case) -> Comparison:
    """One step from two slices of unequal numbers of tokens is the whole batch's at once."""
    return compare_steps(case.with_dropout(0.0), GPT_COURSE, "accumulation", 1, "model", slices=1)


def prove_step(case: Case) -> Comparison:
    """Three steps of two slices each, dropout on."""
    return compare_steps(case.dropping(), GPT_COURSE, "step", 3, "model")


def prove_training(case: Case) -> Comparison:
    """State and metrics after 100 steps of two slices each, dropout on.

    The key biases are left out: see `compare.ZERO_GRADIENT`.
    """
    return compare_steps(case.dropping(), GPT_COURSE, "training", STEPS, "state")


def proofs(case: Case) -> list[tuple[Proof, Case]]:
    """Every proof of training, each with the case it is run on."""
    one_layer = dataclasses.replace(case.config, num_layers=1)
    return [
        *((proof, case) for proof in (prove_loss, prove_schedule, prove_clipping, prove_optimizer)),
        (prove_accumulation, dataclasses.replace(case, config=one_layer)),
        (prove_training, case),
    ]
