"""Stacked layers and a list of layers are two forms of the same parameters."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxformer.config import GPT_PRESETS, MeshConfig, OptimizerConfig
from jaxformer.models.functional import abstract_model, flat_params, init_params, num_parameters
from jaxformer.models.gpt import GPT
from jaxformer.models.stacked import in_form_of, is_stacked, stack_layers, unstack_layers
from jaxformer.sharding.mesh import make_mesh
from jaxformer.sharding.rules import state_shardings
from jaxformer.tasks.flops import training_flops
from jaxformer.training.optimizer import adamw, is_matrix
from jaxformer.training.step import init_state
from jaxformer.weights.convert import from_torch, to_torch
from jaxformer.weights.families.gpt2 import HUGGING_FACE
from jaxformer.weights.twin import TWIN

LIST = dataclasses.replace(GPT_PRESETS["toy"], num_layers=11)  # 10 comes after 9, not after 1
STACKED = dataclasses.replace(LIST, scan_layers=True)


@pytest.fixture(scope="module")
def params():
    """Of layers in a list."""
    return init_params(GPT, LIST, jax.random.key(0))


def assert_same(tree, other):
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, tree, other)


def test_each_layer_is_a_row_of_the_stack_and_back(params):
    stacked = stack_layers(params)
    for path, leaf in flat_params(stacked).items():
        layers = [path.replace("stacked", str(i)) for i in range(11)] if is_stacked(path) else []
        expected = [flat_params(params)[layer] for layer in layers] or flat_params(params)[path]
        np.testing.assert_array_equal(leaf, np.stack(expected) if layers else expected)
    assert_same(unstack_layers(stacked), params)
    assert_same(stack_layers(stacked), stacked)
    assert_same(in_form_of(stacked, params), stacked)
    assert_same(in_form_of(params, stacked), params)


def test_a_train_state_has_both_forms_with_its_moments(params):
    state = init_state(params, adamw(OptimizerConfig(), 10))
    assert_same(stack_layers(state), init_state(stack_layers(params), adamw(OptimizerConfig(), 10)))
    assert_same(unstack_layers(stack_layers(state)), state)


def test_shapes_keep_type_and_sharding():
    mesh = make_mesh(MeshConfig(data=1, fsdp=4, tensor=2))

    def sharded(config):
        shapes = abstract_model(GPT, config)[1]
        return jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            shapes,
            state_shardings(shapes, mesh),
        )

    def description(tree):
        return {
            path: (leaf.shape, leaf.dtype, leaf.sharding.shard_shape(leaf.shape))
            for path, leaf in flat_params(tree).items()
        }

    assert description(stack_layers(sharded(LIST))) == description(sharded(STACKED))
    assert description(unstack_layers(sharded(STACKED))) == description(sharded(LIST))
    kernel = flat_params(sharded(STACKED))["blocks/stacked/mlp/up/kernel"]
    assert kernel.sharding == NamedSharding(mesh, P(None, "fsdp", "tensor"))


def test_a_stacked_model_begins_with_the_same_values(params):
    stacked = init_params(GPT, STACKED, jax.random.key(0))
    assert jax.tree.structure(stack_layers(params)) == jax.tree.structure(stacked)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=0),
        unstack_layers(stacked),
        params,
    )


def test_the_same_leaves_are_decayed_counted_and_multiplied(params):
    stacked = stack_layers(params)
    assert flat_params(is_matrix(stacked)) == flat_params(stack_booleans(is_matrix(params)))
    assert num_parameters(stacked) == num_parameters(params)
    flops = [training_flops(GPT, config, 3, lambda path: 5) for config in (LIST, STACKED)]
    assert flops[0] == flops[1]


def stack_booleans(tree):
    """One boolean for all layers, which must have the same."""
    stacks = stack_layers(jax.tree.map(jnp.asarray, tree))
    assert all(leaf.min() == leaf.max() for leaf in jax.tree.leaves(stacks))
    return jax.tree.map(lambda leaf: bool(leaf.max()), stacks)


@pytest.mark.parametrize("table", [TWIN, HUGGING_FACE], ids=["twin", "gpt2"])
def test_tensors_are_written_and_read_in_either_form(params, table):
    stacked = stack_layers(params)
    tensors = to_torch(params, table)
    found = to_torch(stacked, table)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(found[name], tensor)
    assert_same(from_torch(tensors, table, stacked), stacked)
