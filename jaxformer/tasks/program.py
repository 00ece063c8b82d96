"""A TrainSpec made into jitted functions and shardings on a mesh."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import PyTree

from jaxformer.config import LayerConfig
from jaxformer.errors import UserError
from jaxformer.layers.flash_attention import widest_flash_head
from jaxformer.models.functional import abstract_model, init_params
from jaxformer.models.stacked import keep_rows_sharded
from jaxformer.sharding.mesh import batch_sharding, check_heads
from jaxformer.sharding.rules import state_shardings
from jaxformer.tasks.task import TrainSpec
from jaxformer.training.step import TrainState, init_state, make_eval_step, make_train_step


@dataclasses.dataclass(frozen=True)
class Program:
    """What a run computes, and where."""

    mesh: Mesh
    rows: NamedSharding
    """Sharding of a batch."""
    state: PyTree
    """Shape, type and sharding of every leaf of the train state."""
    fresh_state: Any
    """A jitted function () -> TrainState that initialises each shard on its own device."""
    state_of: Any
    """A jitted function params -> TrainState before the first step, of given parameters."""
    train_step: Any
    """A jitted `jaxformer.training.step.TrainStep`; the state is donated."""
    eval_step: Callable[[PyTree, Any], Any]
    dropout_key: np.ndarray
    """The raw key of the run's dropout."""


def build(spec: TrainSpec, mesh: Mesh) -> Program:
    """Functions, shapes and shardings; nothing is compiled or allocated yet.

    Raises:
        UserError: when the mesh would cut through the model's heads, or for an implementation of
            attention that its devices do not have.
    """
    check_heads(spec.config.model.num_heads, mesh)
    check_heads(spec.config.model.num_kv_heads, mesh, "model.num-kv-heads")
    require_attention(spec.config.model, mesh.devices.flat[0])
    config, optimizer = spec.config, spec.optimizer
    init_key, dropout_key = jax.random.split(jax.random.key(config.seed))
    rows = batch_sharding(mesh)
    graphdef = keep_rows_sharded(*abstract_model(spec.model, config.model), rows)

    def fresh_state() -> TrainState:
        params = init_params(spec.model, config.model, init_key)
        return init_state(params, optimizer)

    shapes = jax.eval_shape(fresh_state)
    shardings = state_shardings(shapes, mesh)

    dropout = dropout_key if config.model.dropout_rate > 0 else None
    return Program(
        mesh=mesh,
        rows=rows,
        state=jax.tree.map(_sharded, shapes, shardings),
        fresh_state=jax.jit(fresh_state, out_shardings=shardings),
        state_of=jax.jit(
            lambda params: init_state(params, optimizer),
            in_shardings=(shardings.params,),
            out_shardings=shardings,
        ),
        train_step=jax.jit(
            make_train_step(
                graphdef,
                spec.objective,
                optimizer,
                dropout,
                config.accumulation,
                config.spikes,
            ),
            in_shardings=(shardings, rows),
            out_shardings=(shardings, None),
            donate_argnums=0,
        ),
        eval_step=jax.jit(
            make_eval_step(graphdef, spec.eval_objective), in_shardings=(shardings.params, rows)
        ),
        dropout_key=np.asarray(jax.random.key_data(dropout_key)),
    )


def _sharded(shape: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)


def require_x64(dtype: str) -> None:
    """Refuse float64 where jax would compute in float32."""
    if dtype == "float64" and not jax.config.read("jax_enable_x64"):
        raise UserError("model.dtype float64 needs 64-bit jax: set JAX_ENABLE_X64=1")


def require_attention(config: LayerConfig, device: jax.Device) -> None:
    """Refuse an implementation of attention that the device does not have."""
    if lack := attention_lack(config, device):
        raise UserError(f"{lack}: choose --model.attention auto")


def attention_lack(config: LayerConfig, device: jax.Device) -> str:
    """Why the device cannot compute attention as the config says; empty if it can.

    Flash needs cuDNN's kernels for heads of such a width.
    """
    widest = widest_flash_head(device)
    if config.attention != "flash" or config.head_width <= widest:
        return ""
    limit = f"takes heads of at most {widest}" if widest else "has none"
    return f"model.attention flash is cuDNN's, of which {device.device_kind} {limit}"
