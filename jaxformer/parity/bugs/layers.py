"""Bugs planted in the single layers that all models are made of."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.layers import attention, dropout, masks, mlp, norms
from jaxformer.parity.engine.mutation import CASE, Bug, patched
from jaxformer.parity.proofs import layers


def masked_by(score: float) -> Callable[[Any], Any]:
    """Attention that masks by a score and leaves rows without keys to the softmax."""

    def attend(q: Any, k: Any, v: Any, mask: Any = None, *dropout: Any) -> Any:
        scores = jnp.einsum("BLHK,BMHK->BHLM", q, k) / math.sqrt(q.shape[-1])
        weights = jax.nn.softmax(scores if mask is None else jnp.where(mask, scores, score))
        return jnp.einsum("BHLM,BMHK->BLHK", weights, v), weights

    return lambda _: attend


def fast_variance(x: Any, scale: Any, bias: Any, epsilon: float) -> jax.Array:
    mean, square = x.mean(-1, keepdims=True), jnp.square(x).mean(-1, keepdims=True)
    return (x - mean) / jnp.sqrt(square - mean**2 + epsilon) * scale + bias


def not_rescaled(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    return x if key is None else jnp.where(dropout.keep_mask(key, rate, x.shape), x, 0.0)


def _layer(**fields: Any) -> Any:
    return dataclasses.replace(CASE, config=dataclasses.replace(CASE.config, **fields))


BUGS = [
    Bug(
        "variance as E[x²] - E[x]²",
        "layer_norm",
        patched(norms, "layer_norm", lambda _: fast_variance),
        layers.prove_layer_norm_far,
    ),
    Bug(
        "tanh form for the exact GELU",
        "mlp",
        lambda: mock.patch.dict(mlp.ACTIVATIONS, gelu=mlp.gelu_tanh),
        layers.prove_mlp,
        _layer(activation="gelu"),
    ),
    Bug(
        "padding mask inverted",
        "masks",
        patched(masks, "padding_mask", lambda f: lambda valid: ~f(valid)),
        layers.prove_masks,
    ),
    Bug(
        "row without keys is NaN",
        "attention_function",
        patched(attention, "attention", masked_by(-np.inf)),
        layers.prove_attention_function,
        dataclasses.replace(CASE, masks=("nothing",)),
    ),
    Bug(
        "row without keys is the mean of V",
        "attention_function",
        patched(attention, "attention", masked_by(-1e30)),
        layers.prove_attention_function,
        dataclasses.replace(CASE, masks=("nothing",)),
    ),
    Bug(
        "dropout layer not rescaled",
        "dropout",
        patched(dropout, "dropout", lambda _: not_rescaled),
        layers.prove_dropout,
        CASE.dropping(),
    ),
]
