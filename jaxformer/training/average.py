"""The average of parameters: of the last checkpoints of a run (Vaswani et al. 2017, section 6.1).

The mean of the last iterates of stochastic approximation is nearer to their limit than each of them
(Polyak & Juditsky 1992).
"""

import functools
import itertools
from collections.abc import Iterable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree

from jaxformer.errors import UserError
from jaxformer.layers.precision import reduction_dtype


def average(params_list: Iterable[PyTree[Array]]) -> PyTree[Array]:
    """The mean of parameters of one structure, leaf by leaf, in the types they have.

    Computed as mean += (params - mean) / k in float32 or wider. If an iterator loads one set at a
    time, at most one is held beside the mean.

    Raises:
        UserError: there is nothing to average.
    """
    sets = iter(params_list)
    first = next(sets, None)
    if first is None:
        raise UserError("there are no parameters to average: name at least one checkpoint")
    mean = jax.tree.map(_upcast, first)
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), first)
    del first  # before the next is read
    counts = itertools.count(2)
    for params in sets:
        mean = _add_to_mean(mean, params, jnp.asarray(next(counts)))
        del params
    return jax.tree.map(lambda m, x: m.astype(x.dtype), mean, like)


def _upcast(x: Array) -> Array:
    # A copy in any case: the mean is updated in place.
    return jnp.array(x, reduction_dtype(x.dtype), copy=True)


@functools.partial(jax.jit, donate_argnums=0)
def _add_to_mean(
    mean: PyTree[Array], params: PyTree[Array], count: Int[Array, ""]
) -> PyTree[Array]:
    return jax.tree.map(lambda m, x: m + (x - m) / count, mean, params)
