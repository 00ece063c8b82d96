"""Proofs of schedules, clipping and optimizers by themselves, on a matrix and a vector."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import torch

from jaxformer.config import NoamConfig, OptimizerConfig
from jaxformer.parity.engine.cases import Case
from jaxformer.parity.engine.comparison import Comparison, Proof, compare_values
from jaxformer.parity.engine.model_pair import twin_config
from jaxformer.parity.engine.settings import arithmetic
from jaxformer.parity.engine.training_pair import (
    OptimizerPair,
    SmallTwin,
    compare_updates,
    small_tree,
)
from jaxformer.porting.compare import Key
from jaxformer.training import optimizer, schedule
from torchref.training import optimizer as torch_optimizer
from torchref.training import schedule as torch_schedule

OPTIMIZER = OptimizerConfig(warmup_steps=10, clip_norm=0.5)
"""Clips most steps of a small model and warms up within the proof."""

MUON = dataclasses.replace(OPTIMIZER, kernels="muon", schedule="stable")
"""The same with Muon."""

NOAM = NoamConfig(factor=0.2, warmup_steps=20)
"""Warms up within the proof; the factor keeps the path of a small model smooth."""


def adamw(config: OptimizerConfig) -> OptimizerPair:
    """AdamW under a cosine schedule."""
    theirs = twin_config(config)
    return OptimizerPair(
        lambda case, steps: optimizer.adamw(config, steps),
        lambda twin: torch_optimizer.adamw(twin, theirs),
        lambda case, steps: torch_schedule.warmup_cosine(theirs, steps),
        config.clip_norm,
    )


def muon(config: OptimizerConfig) -> OptimizerPair:
    """Muon beside AdamW under a schedule that is stable and then decays."""
    theirs = twin_config(config)
    return OptimizerPair(
        lambda case, steps: optimizer.text_optimizer(config, steps),
        lambda twin: torch_optimizer.muon(twin, theirs),
        lambda case, steps: torch_schedule.warmup_stable_decay(theirs, steps),
        config.clip_norm,
    )


def adam(config: NoamConfig) -> OptimizerPair:
    """Adam under the schedule of 2017."""
    theirs = twin_config(config)
    return OptimizerPair(
        lambda case, steps: optimizer.adam(config, case.config.width),
        lambda twin: torch_optimizer.adam(twin, theirs),
        lambda case, steps: torch_schedule.noam(theirs, case.config.width),
        config.clip_norm,
    )


def prove_schedule(case: Case) -> Comparison:
    """The learning rate of every step and of some past the end, with the edges of the warm-up."""
    ours, theirs = {}, {}
    with arithmetic(case.dtype):
        for warmup, steps in ((10, 100), (0, 10), (10, 10), (20, 10), (1, 2), (0, 1)):
            config = dataclasses.replace(OPTIMIZER, warmup_steps=warmup)
            key, count = Key("schedule", "update", f"{warmup} of {steps} steps"), steps + 5
            ours[key] = jax.vmap(schedule.warmup_cosine(config, steps))(jnp.arange(count))
            rate = torch_schedule.warmup_cosine(twin_config(config), steps)
            theirs[key] = np.array([rate(step) for step in range(count)])
    return compare_values(ours, theirs, case, "layer", "gpt")


def prove_stable_schedule(case: Case) -> Comparison:
    """The same of the schedule that is stable and then decays."""
    ours, theirs = {}, {}
    with arithmetic(case.dtype):
        for warmup, steps, share in ((10, 100, 0.2), (0, 10, 0.33), (8, 10, 0.5), (20, 10, 0.9)):
            config = dataclasses.replace(MUON, warmup_steps=warmup, decay_fraction=share)
            key = Key("stable_schedule", "update", f"{warmup} of {steps} steps, {share} of decay")
            rates = jax.vmap(schedule.warmup_stable_decay(config, steps))
            ours[key] = rates(jnp.arange(steps + 5))
            rate = torch_schedule.warmup_stable_decay(twin_config(config), steps)
            theirs[key] = np.array([rate(step) for step in range(steps + 5)])
    return compare_values(ours, theirs, case, "layer", "decoder")


def prove_noam(case: Case) -> Comparison:
    """The learning rate of the first steps, before, at and after the end of the warm-up."""
    ours, theirs = {}, {}
    with arithmetic(case.dtype):
        for warmup, width, factor in ((20, 16, 1.0), (1, 512, 0.5), (4000, 512, 1.0)):
            config = NoamConfig(warmup_steps=warmup, factor=factor)
            key = Key("noam", "update", f"{warmup} of warm-up, width {width}, factor {factor}")
            ours[key] = jax.vmap(schedule.noam(config, width))(jnp.arange(50))
            rate = torch_schedule.noam(twin_config(config), width)
            theirs[key] = np.array([rate(step) for step in range(50)])
    return compare_values(ours, theirs, case, "layer", "transformer")


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
    return compare_values(ours, theirs, case, "layer", "gpt")


def prove_optimizer(case: Case) -> Comparison:
    """AdamW: parameters and moments after some updates."""
    return compare_updates(case, "optimizer", adamw(OPTIMIZER))


def prove_muon(case: Case) -> Comparison:
    """Muon beside AdamW: parameters, momentum and moments after some updates."""
    return compare_updates(case, "muon", muon(MUON))


def prove_adam(case: Case) -> Comparison:
    """Adam (2017): the same, without clipping."""
    return compare_updates(case, "adam", adam(NOAM))


def prove_adam_clipped(case: Case) -> Comparison:
    """The same with clipping."""
    return compare_updates(case, "adam", adam(dataclasses.replace(NOAM, clip_norm=0.5)))


def proofs(case: Case) -> list[tuple[Proof, Case]]:
    """Every proof of GPT's schedule and optimizer, each with the case it is run on."""
    return [(proof, case) for proof in (prove_schedule, prove_clipping, prove_optimizer)]


def muon_proofs(case: Case) -> list[tuple[Proof, Case]]:
    """Every proof of Muon and its schedule, each with the case it is run on."""
    return [(proof, case) for proof in (prove_stable_schedule, prove_muon)]


def adam_proofs(case: Case) -> list[tuple[Proof, Case]]:
    """The same of the Transformer of 2017."""
    return [(proof, case) for proof in (prove_noam, prove_adam, prove_adam_clipped)]
