"""Sharding of the encoder-decoder: the spec of its matrices, the result equals one device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxformer.config import MeshConfig, TransformerConfig
from jaxformer.models.functional import abstract_model, flat_params, init_params, merge
from jaxformer.models.transformer import Transformer
from jaxformer.sharding.mesh import make_mesh
from jaxformer.sharding.rules import spec_for, state_shardings

SIZES = {"vocab_size": 64, "context_length": 16, "width": 32, "num_heads": 4, "mlp_width": 64}
CONFIGS = {
    "shared": TransformerConfig(**SIZES, num_layers=1),
    "separate": TransformerConfig(**SIZES, num_layers=1, share_embeddings=False),
}


def specs(config: TransformerConfig) -> dict[str, P]:
    mesh = make_mesh(MeshConfig(data=1, fsdp=4, tensor=2))
    leaves = flat_params(abstract_model(Transformer, config)[1])
    return {path: spec_for(path, leaf.shape, mesh) for path, leaf in leaves.items()}


def test_decoder_attention_is_sharded_like_encoder_attention():
    found = specs(CONFIGS["separate"])
    for attention in ("encoder/blocks/0/attention", "decoder/blocks/0/self_attention"):
        assert found[f"{attention}/query/kernel"] == P("fsdp", "tensor")
        assert found[f"{attention}/out/kernel"] == P("tensor", "fsdp")
    cross = "decoder/blocks/0/cross_attention"
    assert found[f"{cross}/key/kernel"] == P("fsdp", "tensor")
    assert found[f"{cross}/key/bias"] == P("tensor")
    assert found[f"{cross}/out/kernel"] == P("tensor", "fsdp")
    assert found[f"{cross}/out/bias"] == P()


def test_each_embedding_and_the_output_are_sharded():
    found = specs(CONFIGS["separate"])
    assert found["source_embed/embedding"] == P(("tensor", "fsdp"), None)
    assert found["target_embed/embedding"] == P(("tensor", "fsdp"), None)
    assert found["output/kernel"] == P("fsdp", "tensor")
    assert specs(CONFIGS["shared"])["embed/embedding"] == P(("tensor", "fsdp"), None)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_logits_of_sharded_parameters_equal_those_of_replicated_ones(config):
    graphdef, shapes = abstract_model(Transformer, config)
    params = init_params(Transformer, config, jax.random.key(0))
    source, target = np.random.default_rng(0).integers(0, 64, (2, 8, 6))
    valid = np.arange(6) < np.arange(1, 9)[:, None].clip(max=6)

    @jax.jit
    def logits(params):
        return merge(graphdef, params)(jnp.asarray(source), jnp.asarray(target), jnp.asarray(valid))

    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    sharded = jax.device_put(params, state_shardings(shapes, mesh))
    np.testing.assert_allclose(logits(sharded), logits(params), rtol=0, atol=1e-5)
