"""Proofs of what training is made of: loss, schedule, clipping, optimizer, slices, 100 steps."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

from jaxformer.batch import Batch
from jaxformer.config import OptimizerConfig
from jaxformer.layers.dropout import step_key
from jaxformer.models.gpt import GPT
from jaxformer.models.pure import abstract_model, flat_params
from jaxformer.parity.cases import Case, draw_params, dropout_key, keep_for
from jaxformer.parity.compare import BOUNDS, TRUE_ZEROS, Key, Scope, as_numpy, judge
from jaxformer.parity.divergence import Comparison
from jaxformer.parity.gpt import GPT_TWINS
from jaxformer.parity.settings import arithmetic
from jaxformer.parity.twins import Proof, compare_functions, twin_config
from jaxformer.training import loss, objectives, optimizer, schedule, step
from torchref import batch as torch_batch
from torchref.training import loss as torch_loss
from torchref.training import objectives as torch_objectives
from torchref.training import optimizer as torch_optimizer
from torchref.training import schedule as torch_schedule
from torchref.training import step as torch_step

STEPS = 100
OPTIMIZER = OptimizerConfig(warmup_steps=10, clip_norm=0.5)
"""Clips most steps of a small model and warms up within the proof."""


def prove_loss(case: Case) -> Comparison:
    """The summed cross-entropy, its gradient, and the number of tokens it was summed over."""
    shape = case.batch, case.length
    logits = case.normal("logits", *shape, case.config.vocab_size)
    targets, mask = case.tokens("targets", *shape), case.rng("mask").random(shape) < 0.7

    def inputs(case: Case) -> tuple[list, list]:
        arrays = (logits, targets, mask)
        return [*map(case.to_jax, arrays)], [*map(case.to_torch, arrays)]

    def with_count(function: Any, floating: Any) -> Any:
        def both(*args: Any) -> tuple[Any, Any]:
            total, count = function(*args)
            return total, floating(count)

        return both

    return compare_functions(
        case,
        "loss",
        with_count(lambda *a: loss.cross_entropy(*a), lambda n: n.astype(float)),
        with_count(lambda *a: torch_loss.cross_entropy(*a), lambda n: n.double()),
        inputs,
    )


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
    return Comparison.of(judge(ours, theirs, _bound("layer", case), case.dtype, "gpt"))


def prove_clipping(case: Case) -> Comparison:
    """Gradients above, at and below the largest norm."""
    grads = _small_tree(case, "gradient")
    norm = float(np.sqrt(sum(np.sum(g**2) for g in grads.values())))
    ours, theirs = {}, {}
    for share in (0.1, 0.999999, 1.0, 10.0):
        with arithmetic(case.dtype):
            clip = optimizer.clip_by_global_norm(share * norm)
            tree = {name: case.to_jax(g) for name, g in grads.items()}
            clipped, _ = clip.update(tree, clip.init(tree))
        twin = _SmallTwin(case, grads)
        for name, parameter in twin.named_parameters():
            parameter.grad = case.to_torch(grads[name])
        torch.nn.utils.clip_grad_norm_(twin.parameters(), share * norm)
        for name, parameter in twin.named_parameters():
            key = Key("clipping", "update", f"{name} at {share} of its norm")
            ours[key], theirs[key] = clipped[name], parameter.grad
    return Comparison.of(judge(ours, theirs, _bound("layer", case), case.dtype, "gpt"))


def prove_optimizer(case: Case, steps: int = 12) -> Comparison:
    """Parameters and moments after some updates by given gradients, small and large."""
    start = _small_tree(case, "start")
    sizes = 10.0 ** case.rng("sizes").uniform(-4, 1, steps)
    grads = [
        {name: size * g for name, g in _small_tree(case, f"gradient {i}").items()}
        for i, size in enumerate(sizes)
    ]
    with arithmetic(case.dtype):
        params = {name: case.to_jax(value) for name, value in start.items()}
        adamw = optimizer.adamw(OPTIMIZER, steps)
        state = adamw.init(params)
        for tree in grads:
            given = {name: case.to_jax(g) for name, g in tree.items()}
            updates, state = adamw.update(given, state, params)
            params = optax.apply_updates(params, updates)
        ours = _state_values("optimizer", params, state)

    twin = _SmallTwin(case, start)
    torch_adamw = torch_optimizer.adamw(twin, twin_config(OPTIMIZER))
    rate = torch_schedule.warmup_cosine(twin_config(OPTIMIZER), steps)
    for i, tree in enumerate(grads):
        for name, parameter in twin.named_parameters():
            parameter.grad = case.to_torch(tree[name])
        torch.nn.utils.clip_grad_norm_(twin.parameters(), OPTIMIZER.clip_norm)
        for group in torch_adamw.param_groups:
            group["lr"] = rate(i)
        torch_adamw.step()
    theirs = {}
    for name, parameter in twin.named_parameters():
        theirs[Key("optimizer", "update", f"parameters/{name}")] = parameter
        for label, moment in (("first_moment", "exp_avg"), ("second_moment", "exp_avg_sq")):
            theirs[Key("optimizer", "update", f"{label}/{name}")] = torch_adamw.state[parameter][
                moment
            ]
    return Comparison.of(judge(ours, theirs, _bound("layer", case), case.dtype, "gpt"))


def prove_accumulation(case: Case) -> Comparison:
    """One step from two slices of unequal numbers of tokens is the whole batch's at once."""
    case = _with_rate(case, 0.0)
    ours = _train(case, "accumulation", 1, accumulation=2)
    theirs = _train_twin(case, "accumulation", 1, accumulation=1)
    return Comparison.of(judge(ours, theirs, _bound("model", case), case.dtype, "gpt"))


def prove_step(case: Case) -> Comparison:
    """Three steps of two slices each, dropout on."""
    return _prove_steps(case, "step", 3, "model")


def prove_training(case: Case) -> Comparison:
    """State and metrics after 100 steps of two slices each, dropout on.

    The key biases are left out: see `compare.TRUE_ZEROS`.
    """
    return _prove_steps(case, "training", STEPS, "state")


def proofs(case: Case) -> list[tuple[Proof, Case]]:
    """Every proof of training, each with the case it is run on."""
    one_layer = dataclasses.replace(case.config, num_layers=1)
    return [
        *((proof, case) for proof in (prove_loss, prove_schedule, prove_clipping, prove_optimizer)),
        (prove_accumulation, dataclasses.replace(case, config=one_layer)),
        (prove_training, case),
    ]


def _prove_steps(case: Case, layer: str, steps: int, scope: Scope) -> Comparison:
    case = _with_rate(case, case.config.dropout_rate or 0.2)
    ours = _train(case, layer, steps, accumulation=2)
    theirs = _train_twin(case, layer, steps, accumulation=2)
    return Comparison.of(judge(ours, theirs, _bound(scope, case), case.dtype, "gpt"))


def _train(case: Case, layer: str, steps: int, accumulation: int) -> dict[Key, Any]:
    with arithmetic(case.dtype):
        graph, shapes = abstract_model(GPT, case.model_config)
        adamw = optimizer.adamw(OPTIMIZER, steps)
        key = dropout_key(case) if case.config.dropout_rate else None
        objective = objectives.next_token
        train_step = jax.jit(step.make_train_step(graph, objective, adamw, key, accumulation))
        state = step.init_state(draw_params(case, shapes), adamw)
        reports = []
        for i in range(steps):
            state, report = train_step(state, Batch(*map(jnp.asarray, batch(case, i))))
            reports.append(report)
        metrics = [(float(report.loss), float(report.grad_norm)) for report in reports]
        values = _state_values(layer, state.params, state.opt_state)
        return values | _metrics_values(layer, metrics)


def _train_twin(case: Case, layer: str, steps: int, accumulation: int) -> dict[Key, Any]:
    with arithmetic(case.dtype):
        twin = GPT_TWINS.twin(case)
        objective = torch_objectives.next_token
        config = twin_config(OPTIMIZER)
        adamw = torch_optimizer.adamw(twin, config)
        rate = torch_schedule.warmup_cosine(config, steps)
        reports = []
        for i in range(steps):
            arrays = [torch.tensor(array) for array in batch(case, i)]
            slices = [
                torch_batch.Batch(*(array[a::accumulation] for array in arrays))
                for a in range(accumulation)
            ]
            # The keys of make_train_step's docstring, derived here a second time.
            keys = [
                jax.random.fold_in(step_key(dropout_key(case), i), a) for a in range(accumulation)
            ]
            keeps = [keep_for(case, key) if case.config.dropout_rate else None for key in keys]
            reports.append(
                torch_step.train_step(
                    twin, objective, adamw, rate, config.clip_norm, i, slices, keeps
                )
            )
        values = _metrics_values(layer, [tuple(m) for m in reports])
        named = dict(twin.named_parameters())
        for label, tensors in {
            "parameters": named,
            "first_moment": {n: adamw.state[p]["exp_avg"] for n, p in named.items()},
            "second_moment": {n: adamw.state[p]["exp_avg_sq"] for n, p in named.items()},
        }.items():
            for path, array in GPT_TWINS.in_jax_names(case, tensors).items():
                if not path.endswith(TRUE_ZEROS):
                    values[Key(layer, "update", f"{label}/{path}")] = array
        return values


def batch(case: Case, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inputs, targets and mask of a training step; the two slices differ in their tokens."""
    rng = np.random.default_rng([case.seed, index])
    text = rng.integers(0, case.config.vocab_size, (2 * case.batch, case.length + 1))
    keep = np.where(np.arange(2 * case.batch) % 2 == 0, 0.95, 0.4)[:, None]
    return text[:, :-1], text[:, 1:], rng.random((2 * case.batch, case.length)) < keep


def _state_values(layer: str, params: Any, opt_state: Any) -> dict[Key, Any]:
    trees = {
        "parameters": params,
        "first_moment": optax.tree.get(opt_state, "mu"),
        "second_moment": optax.tree.get(opt_state, "nu"),
    }
    return {
        Key(layer, "update", f"{label}/{path}"): leaf
        for label, tree in trees.items()
        for path, leaf in flat_params(tree).items()
        if not path.endswith(TRUE_ZEROS)
    }


def _metrics_values(layer: str, reports: list[tuple]) -> dict[Key, Any]:
    losses, norms = np.array(reports).T
    return {
        Key(layer, "update", "losses"): losses,
        Key(layer, "update", "gradient norms"): norms,
    }


class _SmallTwin(torch.nn.Module):
    """A matrix and a vector to update."""

    def __init__(self, case: Case, values: Mapping[str, np.ndarray]):
        super().__init__()
        for name, value in values.items():
            self.register_parameter(name, torch.nn.Parameter(case.to_torch(value)))


def _small_tree(case: Case, name: str) -> dict[str, np.ndarray]:
    D = case.config.width
    return {"kernel": case.normal(f"{name} kernel", D, 3), "bias": case.normal(f"{name} bias", D)}


def _with_rate(case: Case, rate: float) -> Case:
    return dataclasses.replace(case, config=dataclasses.replace(case.config, dropout_rate=rate))


def _bound(scope: Scope, case: Case) -> float | None:
    return BOUNDS[scope, case.dtype]
