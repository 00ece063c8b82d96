"""Data parallelism written out: what each device computes, and the one sum over all of them.

`jaxformer/tasks/program.py` leaves the dividing of a step to the compiler: `jax.jit` of
`make_train_step` with shardings, for every mesh. This is the same step for copies of the model, as
`jax.shard_map` lets one say it by hand, kept to be read and to check the compiler by:

    each device    loss, number of tokens and gradients, summed over its own rows
    psum           the same over all rows, on every device
    each device    divides once and makes the same update of its copy

`jax.pmap` is not used here or anywhere: since JAX 0.8 it is in maintenance mode, is itself carried
out by `jax.jit` and `jax.shard_map`, and new code is asked to call `jax.shard_map` (JAX changelog,
0.8.0; https://docs.jax.dev/en/latest/migrate_pmap.html).
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

    Of n devices, device d has the d-th n-th of the rows and drops by the key that
    `make_train_step` gives slice d: n devices at once are n slices one after the other. The rows
    must divide by n.
    """
    axes = mesh.axis_names

    def on_each_device(state: TrainState, rows: Any) -> tuple[TrainState, Metrics]:
        device = jax.lax.axis_index(axes)
        key = None if dropout is None else slice_key(step_key(dropout, state.step), device)

        def summed_loss(params: PyTree) -> SumAndCount:
            return objective(merge(graphdef, params), rows, key)

        # To jax the parameters are one value for all devices, whose gradient it would sum over them
        # unasked. As each device's own values they have each device's own gradient.
        params = jax.lax.pcast(state.params, axes, to="varying")
        (loss, count), grads = jax.value_and_grad(summed_loss, has_aux=True)(params)
        return apply_gradients(state, jax.lax.psum((loss, count, grads), axes), optimizer)

    # What leaves under P() is the same on every device, which jax checks as it traces.
    return jax.shard_map(on_each_device, mesh=mesh, in_specs=(P(), P(axes)), out_specs=P())
