"""Rematerialised blocks: the same values and gradients from less memory."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.batch import Batch, MaskedBatch, PairBatch
from jaxformer.config import BERT_PRESETS, GPT_PRESETS, TRANSFORMER_PRESETS
from jaxformer.models.bert import Bert
from jaxformer.models.functional import abstract_model, init_params, merge
from jaxformer.models.gpt import GPT
from jaxformer.models.transformer import Transformer
from jaxformer.training.objectives import masked_token, next_token, translation

KEY = jax.random.key(7)
B, L, V = 4, 16, 64


def tokens(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, V, (B, L), dtype=np.int32)


VALID = np.arange(L) < np.arange(13, 17)[:, None]
MODELS: dict[str, tuple] = {
    "gpt": (GPT, GPT_PRESETS["toy"], next_token, Batch(tokens(0), tokens(1), VALID)),
    "transformer": (
        Transformer,
        TRANSFORMER_PRESETS["toy"],
        translation("cross_entropy", 0.1, 0),
        PairBatch(tokens(0), VALID, tokens(1), tokens(2), VALID),
    ),
    "bert": (
        Bert,
        BERT_PRESETS["toy"],
        masked_token,
        MaskedBatch(tokens(0), tokens(1) % 2, VALID, tokens(2), VALID),
    ),
}


def gradient(name: str, **changes: Any):
    """The jitted function from parameters and batch to loss and gradients, and both of these."""
    model, preset, objective, batch = MODELS[name]
    config = dataclasses.replace(preset, dropout_rate=0.2, dtype="float64", **changes)
    graphdef, _ = abstract_model(model, config)

    def loss(params, batch):
        return objective(merge(graphdef, params), batch, KEY)[0]

    return jax.jit(jax.value_and_grad(loss)), init_params(model, config, jax.random.key(0)), batch


@pytest.mark.parametrize(
    "name",
    ["gpt", *(pytest.param(name, marks=pytest.mark.slow) for name in ("transformer", "bert"))],
)
def test_loss_and_gradients_equal_those_with_saved_activations(name):
    with jax.enable_x64(True):
        kept, params, batch = gradient(name, num_layers=1)
        again, same, _ = gradient(name, num_layers=1, remat=True)
        jax.tree.map(np.testing.assert_array_equal, params, same)
        expected = jax.tree.leaves(kept(params, batch))
        for a, b in zip(jax.tree.leaves(again(params, batch)), expected, strict=True):
            assert a.dtype == jnp.float64
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-12 * max(1.0, np.abs(b).max()))


@pytest.mark.parametrize("name", MODELS)
def test_each_block_is_recomputed_separately(name):
    def repeated(**changes: Any) -> int:
        with jax.enable_x64(True):
            function, *arguments = gradient(name, num_layers=3, **changes)
            # The forward pass is inlined; the backward pass has one call per recomputed block.
            return str(jax.make_jaxpr(function)(*arguments)).count("prevent_cse=")

    assert repeated() == 0
    assert repeated(remat=True) == (6 if name == "transformer" else 3)
