"""The toy models with the objectives they are trained by, and a batch of each."""

import dataclasses
from typing import Any

import jax
import numpy as np

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
PAIRS = PairBatch(tokens(0), VALID, tokens(1), tokens(2), VALID)
MODELS: dict[str, tuple] = {
    "gpt": (GPT, GPT_PRESETS["toy"], next_token, Batch(tokens(0), tokens(1), VALID)),
    "transformer": (
        Transformer,
        TRANSFORMER_PRESETS["toy"],
        translation("cross_entropy", 0.1, 0),
        PAIRS,
    ),
    "transformer kl": (
        Transformer,
        dataclasses.replace(TRANSFORMER_PRESETS["toy"], share_embeddings=False),
        translation("kl", 0.1, 0),
        PAIRS,
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
    config = dataclasses.replace(preset, **({"dropout_rate": 0.2, "dtype": "float64"} | changes))
    graphdef, _ = abstract_model(model, config)

    def loss(params, batch):
        return objective(merge(graphdef, params), batch, KEY)[0]

    return jax.jit(jax.value_and_grad(loss)), init_params(model, config, jax.random.key(0)), batch
