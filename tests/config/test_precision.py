"""The policy of number types: what a model of each `dtype` holds and returns."""

from typing import get_args

import jax
import jax.numpy as jnp
import pytest

from jaxformer.config import PRECISIONS, DType, GPTConfig
from jaxformer.layers.precision import reduction_dtype, upcast
from jaxformer.models.functional import abstract_model, merge
from jaxformer.models.gpt import GPT


def test_every_dtype_has_a_policy():
    assert set(PRECISIONS) == set(get_args(DType))


@pytest.mark.parametrize("dtype", get_args(DType))
def test_parameters_and_logits_have_the_types_of_the_policy(dtype):
    with jax.enable_x64(dtype == "float64"):
        sizes = {"width": 8, "num_heads": 2, "mlp_width": 16, "num_layers": 1}
        config = GPTConfig(**sizes, vocab_size=11, context_length=4, dtype=dtype)
        graphdef, params = abstract_model(GPT, config)
        assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {config.precision.params}

        def logits(params, tokens):
            model = merge(graphdef, params)
            return model.hidden(tokens)[0], model(tokens)

        tokens = jax.ShapeDtypeStruct((1, 4), jnp.int32)
        hidden, out = jax.eval_shape(logits, params, tokens)
        assert hidden.dtype.name == config.precision.compute
        assert out.dtype.name == config.precision.output


@pytest.mark.parametrize("dtype", get_args(DType))
def test_arrays_are_reduced_in_the_type_of_the_policy(dtype):
    with jax.enable_x64(dtype == "float64"):
        x = jnp.ones(2, dtype)
        assert reduction_dtype(x.dtype).name == PRECISIONS[dtype].reductions
        assert upcast(x).dtype.name == PRECISIONS[dtype].reductions
