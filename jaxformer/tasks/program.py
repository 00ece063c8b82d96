"""A run's method made into functions and places on a mesh."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import PyTree

from jaxformer.errors import UserError
from jaxformer.models.functional import abstract_model, init_params
from jaxformer.sharding.mesh import batch_sharding, check_heads
from jaxformer.sharding.rules import state_shardings
from jaxformer.tasks.task import TrainSpec
from jaxformer.training.step import TrainState, init_state, make_eval_step, make_train_step


@dataclasses.dataclass(frozen=True)
class Program:
    """What a run computes, and where."""

    mesh: Mesh
    rows: NamedSharding
    """Where a batch lives."""
    state: PyTree
    """Shape, type and place of every leaf of the train state."""
    fresh_state: Any
    """A jitted function () -> TrainState that draws each part on the device it belongs to."""
    train_step: Any
    """A jitted `jaxformer.training.step.TrainStep` that takes over its state's memory."""
    eval_step: Callable[[PyTree, Any], Any]
    dropout_key: np.ndarray
    """The raw key of the run's dropout."""


def build(method: TrainSpec, mesh: Mesh) -> Program:
    """Compile nothing yet, allocate nothing yet: functions, shapes and places.

    Raises:
        UserError: when the mesh would cut through the model's heads.
    """
    check_heads(method.config.model.num_heads, mesh)
    config, optimizer = method.config, method.optimizer
    init_key, dropout_key = jax.random.split(jax.random.key(config.seed))
    graphdef, _ = abstract_model(method.model, config.model)

    def begin() -> TrainState:
        params = init_params(method.model, config.model, init_key)
        return init_state(params, optimizer, config.spikes.skip)

    shapes = jax.eval_shape(begin)
    places = state_shardings(shapes, mesh)
    rows = batch_sharding(mesh)

    dropout = dropout_key if config.model.dropout_rate > 0 else None
    return Program(
        mesh=mesh,
        rows=rows,
        state=jax.tree.map(_place, shapes, places),
        fresh_state=jax.jit(begin, out_shardings=places),
        train_step=jax.jit(
            make_train_step(
                graphdef,
                method.objective,
                optimizer,
                dropout,
                config.accumulation,
                config.spikes.deviations,
            ),
            in_shardings=(places, rows),
            out_shardings=(places, None),
            donate_argnums=0,
        ),
        eval_step=jax.jit(
            make_eval_step(graphdef, method.eval_objective), in_shardings=(places.params, rows)
        ),
        dropout_key=np.asarray(jax.random.key_data(dropout_key)),
    )


def _place(shape: Any, place: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=place)


def require_wide_mode(dtype: str) -> None:
    """Refuse float64 where jax would make float32 of it."""
    if dtype == "float64" and not jax.config.read("jax_enable_x64"):
        raise UserError("model.dtype float64 needs jax's wide mode: set JAX_ENABLE_X64=1")
