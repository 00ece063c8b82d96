"""The whole encoder-decoder against transformers' MarianMTModel of the same random weights."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import MarianConfig, MarianMTModel

from jaxformer.config import TransformerConfig
from jaxformer.layers.positions import sinusoidal_positions
from jaxformer.models.functional import abstract_model, merge
from jaxformer.models.transformer import Transformer
from jaxformer.parity.bounds import BOUNDS
from jaxformer.parity.engine.settings import arithmetic
from jaxformer.porting.compare import relative_error
from jaxformer.weights.convert import from_torch
from jaxformer.weights.families.marian import HUGGING_FACE
from parity_tests.dtypes import EACH_DTYPE
from parity_tests.huggingface import (
    assert_equal_gradients,
    assert_reads_in_both_directions,
    draw_sizes,
    perturbed,
    tensors,
)

CONFIGS = [
    TransformerConfig(**draw_sizes(0)),
    TransformerConfig(**draw_sizes(1), activation="gelu"),
    TransformerConfig(**draw_sizes(2)),
]
B, M, L = 4, 9, 6
SOURCE_VALID = np.arange(M) < [[9], [5], [1], [7]]
TARGET_VALID = np.arange(L) < [[6], [2], [4], [5]]


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
        theirs = perturbed(marian(config).to(getattr(torch, dtype)))
        assert not theirs.final_logits_bias.any()
        with torch.no_grad():  # theirs are float32 in a model of any type
            for side in (theirs.model.encoder, theirs.model.decoder):
                side.embed_positions.weight.copy_(torch.tensor(sinusoids_in_halves(config)))
        graphdef, shapes = abstract_model(Transformer, dataclasses.replace(config, dtype=dtype))
        yield theirs, graphdef, from_torch(tensors(theirs), HUGGING_FACE, shapes), dtype


@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
def test_logits_and_every_gradient_are_equal(config, pair, padded):
    theirs, graphdef, params, dtype = pair
    bound, rng = BOUNDS["model", dtype], np.random.default_rng(0)
    # Theirs stops the gradient of the padding token's embedding: no text contains the token.
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
    expected = from_torch(tensors(theirs, grads=True), HUGGING_FACE, params)
    assert_equal_gradients(grads, expected, bound)


def test_the_table_reads_in_both_directions(pair):
    theirs, _, params, _ = pair
    assert_reads_in_both_directions(theirs, HUGGING_FACE, params)


def test_their_sinusoids_are_in_halves_rounded_to_float32(config):
    model, unit_roundoff = marian(config).model, np.finfo(np.float32).eps / 2
    for table in (model.encoder.embed_positions.weight, model.decoder.embed_positions.weight):
        assert relative_error(table, sinusoids_in_halves(config)) <= unit_roundoff
