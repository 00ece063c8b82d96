"""Data parallelism written out: the computation of each device, and the one sum over all of them.

`jaxformer/tasks/program.py` lets the compiler divide a step: `jax.jit` of `make_train_step` with
shardings, for every mesh. This is the same step for copies of the model, by hand with
`jax.shard_map`, to be read and to check the compiler:

    each device    loss, number of tokens and gradients, summed over its own rows
    psum           the same over all rows, on every device
    each device    divides once and makes the same update of its copy

`jax.pmap` is not used: since JAX 0.8 it is in maintenance mode and implemented by `jax.jit` and
`jax.shard_map`, which new code should call (JAX changelog, 0.8.0;
https://docs.jax.dev/en/latest/migrate_pmap.html).
"""

from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Key, PyTree

from jaxformer.layers.dropout import step_key
from jaxformer.models.functional import merge
from jaxformer.training.loss import SumAndCount
from jaxformer.training.objectives import Objective
from jaxformer.training.optimizer import Optimizer
from jaxformer.training.step import Metrics, TrainState, TrainStep, apply_gradients, slice_key


def make_data_parallel_step(
    mesh: Mesh,
    graphdef: nnx.GraphDef,
    objective: Objective,
    optimizer: Optimizer,
    dropout: Key[Array, ""] | None,
) -> TrainStep:
    """The function (state, batch) -> (state, metrics), to be jitted; rows over all of the mesh.

    Of n devices, device d has the d-th n-th of the rows and the dropout key that
    `make_train_step` gives slice d: n devices in parallel equal n slices in sequence. The number
    of rows must be a multiple of n.
    """
    axes = mesh.axis_names

    def on_each_device(state: TrainState, rows: Any) -> tuple[TrainState, Metrics]:
        device = jax.lax.axis_index(axes)
        key = None if dropout is None else slice_key(step_key(dropout, state.step), device)

        def summed_loss(params: PyTree) -> SumAndCount:
            return objective(merge(graphdef, params), rows, key)

        # The parameters are one value for all devices, over which jax would sum their gradient.
        # Cast to values that vary, they have a gradient on each device.
        params = jax.lax.pcast(state.params, axes, to="varying")
        (loss, count), grads = jax.value_and_grad(summed_loss, has_aux=True)(params)
        return apply_gradients(state, jax.lax.psum((loss, count, grads), axes), optimizer)

    # P() states that the results are the same on every device; jax checks it as it traces.
    return jax.shard_map(on_each_device, mesh=mesh, in_specs=(P(), P(axes)), out_specs=P())
