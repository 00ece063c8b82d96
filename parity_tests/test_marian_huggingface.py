"""The whole encoder-decoder against transformers' MarianMTModel of the same random weights.

Marian's sinusoids stand in halves, [sin ... cos ...], ours alternate, [sin cos sin cos ...]. Both
are the same model if the residual stream's D units are put into another order, so every leaf that
faces the stream is: columns of the embedding, inputs of projections out of it, outputs and biases
of projections into it, and the norms.
"""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import MarianConfig, MarianMTModel

from jaxformer.config import TransformerConfig
from jaxformer.layers.positions import sinusoidal_positions
from jaxformer.models.functional import abstract_model, leaf_path, merge
from jaxformer.models.transformer import Transformer
from jaxformer.parity.engine.settings import arithmetic
from jaxformer.porting.compare import BOUNDS, relative_error
from jaxformer.weights.convert import from_torch
from jaxformer.weights.tables import MARIAN_HUGGING_FACE
from parity_tests.dtypes import EACH_DTYPE
from parity_tests.huggingface import assert_equal_gradients, draw_sizes, shaken, tensors

CONFIGS = [
    TransformerConfig(**draw_sizes(0)),
    TransformerConfig(**draw_sizes(1), activation="gelu"),
    TransformerConfig(**draw_sizes(2)),
]
B, M, L = 4, 9, 6
SOURCE_VALID = np.arange(M) < [[9], [5], [1], [7]]
TARGET_VALID = np.arange(L) < [[6], [2], [4], [5]]


def in_our_order(tree, D):
    """Leaves with sines and cosines of the residual stream alternating."""
    order = np.arange(D).reshape(2, D // 2).T.ravel()  # 0, D/2, 1, D/2 + 1, ...

    def ordered(path, leaf):
        name = leaf_path(path)
        if re.search(r"(query|key|value|up)/kernel$", name):
            return leaf[order]
        if re.search(r"(query|key|value|up)/bias$", name):
            return leaf
        return leaf[..., order]

    return jax.tree_util.tree_map_with_path(ordered, tree)


def sinusoids_in_halves(config: TransformerConfig) -> np.ndarray:
    """All sines before all cosines, in float64."""
    table = sinusoidal_positions(config.context_length, config.width)
    return np.concatenate([table[:, 0::2], table[:, 1::2]], axis=1)


def marian(config: TransformerConfig) -> MarianMTModel:
    sizes = {
        f"{side}_{name}": value
        for side in ("encoder", "decoder")
        for name, value in (
            ("layers", config.num_layers),
            ("attention_heads", config.num_heads),
            ("ffn_dim", config.mlp_width),
        )
    }
    return MarianMTModel(
        MarianConfig(
            **sizes,
            vocab_size=config.vocab_size,
            d_model=config.width,
            max_position_embeddings=config.context_length,
            activation_function=config.activation,
            scale_embedding=True,
            dropout=0.0,
            init_std=0.2,
            pad_token_id=0,
            eos_token_id=1,
            decoder_start_token_id=0,
            attn_implementation="eager",
        )
    )


@pytest.fixture(params=CONFIGS, ids=range(len(CONFIGS)))
def config(request) -> TransformerConfig:
    return request.param


@pytest.fixture(params=EACH_DTYPE)
def pair(request, config):
    """Theirs, and ours with its weights."""
    dtype = request.param
    with arithmetic(dtype):
        torch.manual_seed(0)
        theirs = shaken(marian(config).to(getattr(torch, dtype)))
        assert not theirs.final_logits_bias.any()
        with torch.no_grad():  # theirs are kept in float32, whatever the model's type
            for side in (theirs.model.encoder, theirs.model.decoder):
                side.embed_positions.weight.copy_(torch.tensor(sinusoids_in_halves(config)))
        graphdef, shapes = abstract_model(Transformer, dataclasses.replace(config, dtype=dtype))
        params = from_torch(tensors(theirs), MARIAN_HUGGING_FACE, shapes)
        yield theirs, graphdef, in_our_order(params, config.width), dtype


@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
def test_logits_and_every_gradient_are_equal(config, pair, padded):
    theirs, graphdef, params, dtype = pair
    bound, rng = BOUNDS["model", dtype], np.random.default_rng(0)
    # Theirs keeps gradients from the embedding of its padding token: none stands in the texts.
    source, target = (rng.integers(1, config.vocab_size, (B, n)) for n in (M, L))
    valid = [SOURCE_VALID, TARGET_VALID] if padded else [None, None]
    weights = rng.standard_normal((B, L, config.vocab_size)) * TARGET_VALID[..., None]

    def loss(params):
        masks = [None if mask is None else jnp.asarray(mask) for mask in valid]
        logits = merge(graphdef, params)(jnp.asarray(source), jnp.asarray(target), *masks)
        return (logits * jnp.asarray(weights, logits.dtype)).sum(), logits

    (_, logits), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    masks = [None if mask is None else torch.tensor(mask).long() for mask in valid]
    out = theirs(
        torch.tensor(source),
        attention_mask=masks[0],
        decoder_input_ids=torch.tensor(target),
        decoder_attention_mask=masks[1],
    ).logits
    (out * torch.tensor(weights, dtype=out.dtype)).sum().backward()
    assert relative_error(logits[TARGET_VALID], out.detach().numpy()[TARGET_VALID]) <= bound
    expected = from_torch(tensors(theirs, grads=True), MARIAN_HUGGING_FACE, params)
    assert_equal_gradients(grads, in_our_order(expected, config.width), bound)


def test_their_sinusoids_stand_in_halves(config):
    model = marian(config).model
    for table in (model.encoder.embed_positions.weight, model.decoder.embed_positions.weight):
        assert relative_error(table, sinusoids_in_halves(config)) < 1e-7
