"""A model as two values: its graph definition and a pure pytree of parameters.

A module is split once; everything else is a function of the parameters:

    graphdef, shapes = abstract_model(GPT, config)
    params = init_params(GPT, config, jax.random.key(0))
    logits = merge(graphdef, params)(tokens)

Parameters are nested dicts, so a leaf has a path such as `blocks/0/attention/query/kernel`; the
tables of jaxformer.weights and jaxformer.sharding name leaves by these paths.
"""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Key, PyTree

from jaxformer.config import LayerConfig


def abstract_model(
    model_class: Callable[..., nnx.Module], config: LayerConfig
) -> tuple[nnx.GraphDef, PyTree]:
    """The graph definition and the shapes and types of the parameters; allocates nothing."""
    model = nnx.eval_shape(lambda: model_class(config, nnx.Rngs(0)))
    return _split(model)


def init_params(
    model_class: Callable[..., nnx.Module], config: LayerConfig, key: Key[Array, ""]
) -> PyTree[Array]:
    """Initial parameters; drawn in shards on a mesh they are the same, up to the last bits."""
    return _split(model_class(config, nnx.Rngs(params=key)))[1]


def merge(graphdef: nnx.GraphDef, params: PyTree) -> Any:
    """The model with these parameters, ready to call inside or outside jit."""
    return nnx.merge(graphdef, params)


def num_parameters(params: PyTree) -> int:
    """Numbers in all leaves, of arrays or of their shapes."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def _split(model: nnx.Module) -> tuple[nnx.GraphDef, PyTree]:
    # Fails on any state that is not a parameter: models are pure.
    graphdef, state = nnx.split(model, nnx.Param)
    return graphdef, nnx.to_pure_dict(state)


def leaf_path(path: tuple[Any, ...]) -> str:
    """A key path of jax.tree_util as `blocks/0/mlp/up/kernel`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def flat_params(params: PyTree) -> dict[str, Any]:
    """Every leaf by its path, in the pytree's order."""
    return {leaf_path(p): leaf for p, leaf in jax.tree_util.tree_leaves_with_path(params)}
