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
from jaxformer.models.functional import flat_params, merge
from jaxformer.models.stacked import unstack_layers
from jaxformer.parity.bounds import Scope
from jaxformer.parity.engine.cases import Case, dropout_key, keep_for
from jaxformer.parity.engine.comparison import Comparison, compare_values
from jaxformer.parity.engine.model_pair import ModelPair, in_jax_names
from jaxformer.parity.engine.settings import arithmetic
from jaxformer.porting.compare import ZERO_GRADIENT, Key
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


class OptimizerPair(NamedTuple):
    """How parameters are updated, on both sides."""

    optimizer: Callable[[Case, int], Optimizer]
    """From a case and the number of all steps."""
    twin_optimizer: TwinOptimizer
    rate: Callable[[Case, int], Rate]
    """The twin's learning rate at each step, from a case and the number of all steps."""
    clip_norm: float | None
    """Largest norm of the twin's gradient."""


class TrainingPair(NamedTuple):
    """How a model and its twin are trained."""

    models: ModelPair
    batch: Callable[[Case, int], Any]
    """The batch of a step, of numpy arrays; its two slices differ in their number of tokens."""
    objective: Callable[[Case], Objective]
    twin_objective: Callable[[Case], torch_objectives.Objective]
    optimizers: OptimizerPair
    objective_name: str
    """The layer of the objective's proof."""
    steps: int = 100
    """Of the proof of training."""


def compare_steps(
    case: Case,
    pair: TrainingPair,
    layer: str,
    steps: int,
    scope: Scope,
    slices: int = 2,
    mesh: MeshConfig = ONE_DEVICE,
) -> Comparison:
    """Parameters, moments and metrics after some steps; only the twin's number of slices varies."""
    ours = take_steps(case, pair, layer, steps, 2, mesh)
    theirs = take_twin_steps(case, pair, layer, steps, slices)
    return compare_values(ours, theirs, case, scope, pair.models.name)


def compare_objective(case: Case, pair: TrainingPair) -> Comparison:
    """The summed loss of a batch, the number of tokens, every parameter's gradient; no dropout."""
    batch, layer = pair.batch(case, 0), pair.objective_name

    def as_values(total: Any, count: Any, grads: Mapping[str, Any]) -> dict[Key, Any]:
        sums: dict[Key, Any] = {
            Key(layer, "output", "sum"): total,
            Key(layer, "output", "count"): count,
        }
        return sums | {Key(layer, "param_grad", path): grad for path, grad in grads.items()}

    with arithmetic(case.dtype):
        graphdef, drawn = pair.models.draw(case)
        objective, arrays = pair.objective(case), jax.tree.map(jnp.asarray, batch)

        def loss(params: Any) -> Any:
            return objective(merge(graphdef, params), arrays, None)

        (total, count), grads = jax.value_and_grad(loss, has_aux=True)(drawn)
        ours = as_values(total, count, flat_params(unstack_layers(grads)))

        twin = pair.models.twin(case, drawn)
        total, count = pair.twin_objective(case)(twin, in_torch(batch), None)
        total.backward()
        theirs = as_values(total, count, in_jax_names(drawn, _grads(twin)))
    return compare_values(ours, theirs, case, "model", pair.models.name)


def compare_updates(
    case: Case,
    layer: str,
    pair: OptimizerPair,
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
        optimizer = pair.optimizer(case, steps)
        state = step.init_state(params, optimizer)
        for tree in grads:
            given = {name: case.to_jax(g) for name, g in tree.items()}
            loss_and_count = jnp.zeros(()), jnp.ones((), jnp.int32)
            state, _ = step.apply_gradients(state, (*loss_and_count, given), optimizer)
        ours = _state_values(layer, state.params, state.opt_state)

    twin = SmallTwin(case, start)
    rule, rate = pair.twin_optimizer(twin), pair.rate(case, steps)
    for i, tree in enumerate(grads):
        for name, parameter in twin.named_parameters():
            parameter.grad = case.to_torch(tree[name])
        if pair.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(twin.parameters(), pair.clip_norm)
        for group in rule.param_groups:
            group["lr"] = rate(i)
        rule.step()
    theirs = {
        Key(layer, "update", f"{label}/{name}"): tensor
        for label, tensors in _torch_state(twin, rule).items()
        for name, tensor in tensors.items()
    }
    return compare_values(ours, theirs, case, "layer", "layers")


def take_steps(
    case: Case,
    pair: TrainingPair,
    layer: str,
    steps: int,
    accumulation: int,
    mesh: MeshConfig = ONE_DEVICE,
) -> dict[Key, Any]:
    """jaxformer's state and metrics after some steps on the first devices that fill the mesh."""
    with arithmetic(case.dtype):
        train_step, state = begin(case, pair, steps, accumulation, mesh)
        reports = []
        for i in range(steps):
            state, report = train_step(state, jax.tree.map(jnp.asarray, pair.batch(case, i)))
            reports.append(report)
        metrics = [(float(report.loss), float(report.grad_norm)) for report in reports]
        values = _state_values(layer, state.params, state.opt_state)
        return values | _metrics_values(layer, metrics)


def begin(
    case: Case, pair: TrainingPair, steps: int, accumulation: int, mesh: MeshConfig = ONE_DEVICE
) -> tuple[Any, step.TrainState]:
    """jaxformer's jitted train step and the initial state, divided over the mesh."""
    graphdef, params = pair.models.draw(case)
    optimizer = pair.optimizers.optimizer(case, steps)
    key = dropout_key(case) if case.config.dropout_rate else None
    train_step = step.make_train_step(graphdef, pair.objective(case), optimizer, key, accumulation)
    state = step.init_state(params, optimizer)
    devices = make_mesh(mesh, jax.devices()[: mesh.data * mesh.fsdp * mesh.tensor])
    places, rows = state_shardings(state, devices), batch_sharding(devices)
    jitted = jax.jit(train_step, in_shardings=(places, rows), out_shardings=(places, None))
    return jitted, jax.device_put(state, places)


def take_twin_steps(
    case: Case, pair: TrainingPair, layer: str, steps: int, accumulation: int
) -> dict[Key, Any]:
    """The twin's state and metrics after some steps, by the paths of jaxformer's parameters."""
    with arithmetic(case.dtype):
        _, drawn = pair.models.draw(case)
        twin = pair.models.twin(case, drawn)
        optimizers, objective = pair.optimizers, pair.twin_objective(case)
        rule, rate = optimizers.twin_optimizer(twin), optimizers.rate(case, steps)
        reports = []
        for i in range(steps):
            whole = in_torch(pair.batch(case, i))
            slices = [
                type(whole)(*(tensor[a::accumulation] for tensor in whole))
                for a in range(accumulation)
            ]
            # The keys as the docstring of make_train_step derives them.
            keys = [
                jax.random.fold_in(step_key(dropout_key(case), i), a) for a in range(accumulation)
            ]
            keeps = [keep_for(case, key) if case.config.dropout_rate else None for key in keys]
            reports.append(
                torch_step.train_step(
                    twin, objective, rule, rate, optimizers.clip_norm, i, slices, keeps
                )
            )
        values = _metrics_values(layer, [(m.loss, m.grad_norm) for m in reports])
        for label, tensors in _torch_state(twin, rule).items():
            for path, array in in_jax_names(drawn, tensors).items():
                if not path.endswith(ZERO_GRADIENT):
                    values[Key(layer, "update", f"{label}/{path}")] = array
        return values


def in_torch(batch: Any) -> Any:
    """The twin's batch of the same name, field for field."""
    return getattr(torch_batch, type(batch).__name__)(*map(torch.tensor, batch))


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
    # PyTorch has None as the gradient of a parameter that nothing depends on.
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad
        for name, p in twin.named_parameters()
    }


MOMENTS = {"first_moment": ("mu", "exp_avg"), "second_moment": ("nu", "exp_avg_sq")}
MOMENTS |= {"momentum": ("momentum", "momentum")}
"""What optimizers keep of each parameter, by its names here and there."""


def _state_values(layer: str, params: Any, opt_state: Any) -> dict[Key, Any]:
    trees = {"parameters": params} | {
        label: optax.tree.get(opt_state, ours) for label, (ours, _) in MOMENTS.items()
    }
    return {
        Key(layer, "update", f"{label}/{path}"): leaf
        for label, tree in trees.items()
        if tree is not None
        for path, leaf in flat_params(unstack_layers(_filled(tree, params))).items()
        if not path.endswith(ZERO_GRADIENT)
    }


def _filled(tree: Any, params: Any) -> Any:
    """Zeros for parameters of which another rule keeps something else."""

    def fill(kept: Any, parameter: Any) -> Any:
        return jnp.zeros_like(parameter) if isinstance(kept, optax.MaskedNode) else kept

    return jax.tree.map(fill, tree, params, is_leaf=lambda x: isinstance(x, optax.MaskedNode))


def _torch_state(
    twin: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, dict[str, torch.Tensor]]:
    named, state = dict(twin.named_parameters()), optimizer.state
    return {"parameters": dict(named)} | {
        label: {name: state[p].get(theirs, torch.zeros_like(p)) for name, p in named.items()}
        for label, (_, theirs) in MOMENTS.items()
        if any(theirs in state[p] for p in named.values())
    }


def _metrics_values(layer: str, reports: list[tuple]) -> dict[Key, Any]:
    losses, norms = np.array(reports).T
    return {
        Key(layer, "update", "losses"): losses,
        Key(layer, "update", "gradient norms"): norms,
    }
