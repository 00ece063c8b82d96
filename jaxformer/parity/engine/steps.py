"""Training steps of a model and of its twin, side by side: the engine of the proofs of training."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

from jaxformer.config import MeshConfig
from jaxformer.layers.dropout import step_key
from jaxformer.models.functional import abstract_model, flat_params, merge
from jaxformer.parity.engine.cases import Case, draw_params, dropout_key, keep_for
from jaxformer.parity.engine.settings import arithmetic
from jaxformer.parity.engine.twins import ModelPair
from jaxformer.porting.compare import BOUNDS, ZERO_GRADIENT, Key, Scope, judge
from jaxformer.porting.locate import Comparison
from jaxformer.sharding.mesh import batch_sharding, make_mesh
from jaxformer.sharding.rules import state_shardings
from jaxformer.training import step
from jaxformer.training.objectives import Objective
from jaxformer.training.optimizer import Optimizer
from torchref import batch as torch_batch
from torchref.training import objectives as torch_objectives
from torchref.training import step as torch_step

ONE_DEVICE = MeshConfig(data=1)

TwinOptimizer = Callable[[torch.nn.Module], torch.optim.Optimizer]
Rate = Callable[[int], float]


class TrainingPair(NamedTuple):
    """How a model and its twin are trained."""

    twins: ModelPair
    batch: Callable[[Case, int], Any]
    """The batch of a step, of numpy arrays; its two slices differ in their tokens."""
    objective: Objective
    twin_objective: torch_objectives.Objective
    optimizer: Callable[[Case, int], Optimizer]
    """From a case and the number of all steps."""
    twin_optimizer: TwinOptimizer
    rate: Callable[[Case, int], Rate]
    """The twin's learning rates, from a case and the number of all steps."""
    clip_norm: float | None
    """Largest norm of the twin's gradient."""


def compare_steps(
    case: Case,
    course: TrainingPair,
    layer: str,
    steps: int,
    scope: Scope,
    slices: int = 2,
    mesh: MeshConfig = ONE_DEVICE,
) -> Comparison:
    """Parameters, moments and metrics after some steps; the twin takes its batches in slices."""
    ours = take_steps(case, course, layer, steps, 2, mesh)
    theirs = take_twin_steps(case, course, layer, steps, slices)
    rows = judge(ours, theirs, bound_of(scope, case), case.dtype, course.twins.name)
    return Comparison.of(rows)


def compare_objective(case: Case, course: TrainingPair, layer: str) -> Comparison:
    """The summed loss of a batch, the number of tokens, every parameter's gradient; no dropout."""
    batch = course.batch(case, 0)
    with arithmetic(case.dtype):
        graphdef, shapes = abstract_model(course.twins.build, case.model_config)

        def objective(params: Any) -> Any:
            return course.objective(merge(graphdef, params), jax.tree.map(jnp.asarray, batch), None)

        value_and_grad = jax.value_and_grad(objective, has_aux=True)
        (total, count), grads = value_and_grad(draw_params(case, shapes))
        ours: dict[Key, Any] = {
            Key(layer, "output", "sum"): total,
            Key(layer, "output", "count"): count,
        }
        ours |= {Key(layer, "param_grad", path): g for path, g in flat_params(grads).items()}

        twin = course.twins.twin(case)
        total, count = course.twin_objective(twin, in_torch(batch), None)
        total.backward()
        theirs: dict[Key, Any] = {
            Key(layer, "output", "sum"): total,
            Key(layer, "output", "count"): count,
        }
        for path, grad in course.twins.in_jax_names(case, _grads(twin)).items():
            theirs[Key(layer, "param_grad", path)] = grad
    rows = judge(ours, theirs, bound_of("model", case), case.dtype, course.twins.name)
    return Comparison.of(rows)


def compare_updates(
    case: Case,
    layer: str,
    optimizer: Optimizer,
    twin_optimizer: TwinOptimizer,
    rate: Rate,
    clip_norm: float | None,
    steps: int = 12,
) -> Comparison:
    """Parameters and moments after some updates by given gradients, small and large."""
    start = small_tree(case, "start")
    sizes = 10.0 ** case.rng("sizes").uniform(-4, 1, steps)
    grads = [
        {name: size * g for name, g in small_tree(case, f"gradient {i}").items()}
        for i, size in enumerate(sizes)
    ]
    with arithmetic(case.dtype):
        params = {name: case.to_jax(value) for name, value in start.items()}
        state = step.init_state(params, optimizer)
        for tree in grads:
            given = {name: case.to_jax(g) for name, g in tree.items()}
            loss_and_count = jnp.zeros(()), jnp.ones((), jnp.int32)
            state, _ = step.apply_gradients(state, (*loss_and_count, given), optimizer)
        ours = _state_values(layer, state.params, state.opt_state)

    twin = SmallTwin(case, start)
    rule = twin_optimizer(twin)
    for i, tree in enumerate(grads):
        for name, parameter in twin.named_parameters():
            parameter.grad = case.to_torch(tree[name])
        if clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(twin.parameters(), clip_norm)
        for group in rule.param_groups:
            group["lr"] = rate(i)
        rule.step()
    theirs = {
        Key(layer, "update", f"{label}/{name}"): tensor
        for label, tensors in _torch_state(twin, rule).items()
        for name, tensor in tensors.items()
    }
    return Comparison.of(judge(ours, theirs, bound_of("layer", case), case.dtype, "layers"))


def take_steps(
    case: Case,
    course: TrainingPair,
    layer: str,
    steps: int,
    accumulation: int,
    mesh: MeshConfig = ONE_DEVICE,
) -> dict[Key, Any]:
    """jaxformer's state and metrics after some steps on the first devices that fill the mesh."""
    with arithmetic(case.dtype):
        train_step, state = begin(case, course, steps, accumulation, mesh)
        reports = []
        for i in range(steps):
            state, report = train_step(state, jax.tree.map(jnp.asarray, course.batch(case, i)))
            reports.append(report)
        metrics = [(float(report.loss), float(report.grad_norm)) for report in reports]
        values = _state_values(layer, state.params, state.opt_state)
        return values | _metrics_values(layer, metrics)


def begin(
    case: Case, course: TrainingPair, steps: int, accumulation: int, mesh: MeshConfig = ONE_DEVICE
) -> tuple[Any, step.TrainState]:
    """jaxformer's jitted train step and the state before the first, divided over the mesh."""
    graphdef, shapes = abstract_model(course.twins.build, case.model_config)
    optimizer = course.optimizer(case, steps)
    key = dropout_key(case) if case.config.dropout_rate else None
    train_step = step.make_train_step(graphdef, course.objective, optimizer, key, accumulation)
    state = step.init_state(draw_params(case, shapes), optimizer)
    devices = make_mesh(mesh, jax.devices()[: mesh.data * mesh.fsdp * mesh.tensor])
    places, rows = state_shardings(state, devices), batch_sharding(devices)
    jitted = jax.jit(train_step, in_shardings=(places, rows), out_shardings=(places, None))
    return jitted, jax.device_put(state, places)


def take_twin_steps(
    case: Case, course: TrainingPair, layer: str, steps: int, accumulation: int
) -> dict[Key, Any]:
    """The twin's state and metrics after some steps, by the paths of jaxformer's parameters."""
    with arithmetic(case.dtype):
        twin = course.twins.twin(case)
        rule, rate = course.twin_optimizer(twin), course.rate(case, steps)
        reports = []
        for i in range(steps):
            whole = in_torch(course.batch(case, i))
            slices = [
                type(whole)(*(tensor[a::accumulation] for tensor in whole))
                for a in range(accumulation)
            ]
            # The keys of make_train_step's docstring, derived here a second time.
            keys = [
                jax.random.fold_in(step_key(dropout_key(case), i), a) for a in range(accumulation)
            ]
            keeps = [keep_for(case, key) if case.config.dropout_rate else None for key in keys]
            reports.append(
                torch_step.train_step(
                    twin, course.twin_objective, rule, rate, course.clip_norm, i, slices, keeps
                )
            )
        values = _metrics_values(layer, [(m.loss, m.grad_norm) for m in reports])
        for label, tensors in _torch_state(twin, rule).items():
            for path, array in course.twins.in_jax_names(case, tensors).items():
                if not path.endswith(ZERO_GRADIENT):
                    values[Key(layer, "update", f"{label}/{path}")] = array
        return values


def in_torch(batch: Any) -> Any:
    """The twin's batch of the same name, field for field."""
    return getattr(torch_batch, type(batch).__name__)(*map(torch.tensor, batch))


def bound_of(scope: Scope, case: Case) -> float | None:
    """The bound of a scope in the type of the case."""
    return BOUNDS[scope, case.dtype]


class SmallTwin(torch.nn.Module):
    """A matrix and a vector to update."""

    def __init__(self, case: Case, values: Mapping[str, np.ndarray]):
        super().__init__()
        for name, value in values.items():
            self.register_parameter(name, torch.nn.Parameter(case.to_torch(value)))


def small_tree(case: Case, name: str) -> dict[str, np.ndarray]:
    """A matrix and a vector, drawn."""
    D = case.config.width
    return {"kernel": case.normal(f"{name} kernel", D, 3), "bias": case.normal(f"{name} bias", D)}


def _grads(twin: torch.nn.Module) -> dict[str, torch.Tensor]:
    # A parameter that nothing depends on has the gradient 0, which PyTorch calls None.
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad
        for name, p in twin.named_parameters()
    }


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
        if not path.endswith(ZERO_GRADIENT)
    }


def _torch_state(
    twin: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, dict[str, torch.Tensor]]:
    named = dict(twin.named_parameters())
    return {
        "parameters": dict(named),
        "first_moment": {name: optimizer.state[p]["exp_avg"] for name, p in named.items()},
        "second_moment": {name: optimizer.state[p]["exp_avg_sq"] for name, p in named.items()},
    }


def _metrics_values(layer: str, reports: list[tuple]) -> dict[Key, Any]:
    losses, norms = np.array(reports).T
    return {
        Key(layer, "update", "losses"): losses,
        Key(layer, "update", "gradient norms"): norms,
    }
