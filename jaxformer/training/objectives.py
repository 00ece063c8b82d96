"""Objectives: functions (model, batch, dropout key) -> (summed loss, number of tokens).

Next tokens (GPT), translations (the encoder-decoder of Vaswani et al. 2017) and masked tokens
(BERT, Devlin et al. 2019, section 3.1). A train step knows model and batch by its objective alone.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxformer.batch import Batch, MaskedBatch, PairBatch
from jaxformer.config import LossKind
from jaxformer.training.loss import (
    SumAndCount,
    accuracy,
    cross_entropy,
    label_smoothing_kl,
    smoothed_cross_entropy,
)

Objective = Callable[[Any, Any, Key[Array, ""] | None], SumAndCount]
"""From a model, its batch and the key of its dropout (None turns it off) to the loss."""


def next_token(model: Any, batch: Batch, dropout_key: Key[Array, ""] | None) -> SumAndCount:
    """The cross-entropy of a GPT: each token from those before it."""
    logits_BLV = model(batch.inputs, dropout_key=dropout_key)
    return cross_entropy(logits_BLV, batch.targets, batch.mask)


def next_token_accuracy(
    model: Any, batch: Batch, dropout_key: Key[Array, ""] | None
) -> SumAndCount:
    """The accuracy of a GPT: how many tokens are the likeliest after those before them."""
    logits_BLV = model(batch.inputs, dropout_key=dropout_key)
    return accuracy(logits_BLV, batch.targets, batch.mask)


def translation(loss: LossKind, smoothing: float, padding_id: int) -> Objective:
    """The smoothed loss of an encoder-decoder: each target token from source and those before it.

    `cross_entropy` is smoothed as PyTorch does it, `kl` as the Annotated Transformer does, which
    gives the padding token no mass.
    """

    def cross_entropy_loss(
        model: Any, batch: PairBatch, dropout_key: Key[Array, ""] | None
    ) -> SumAndCount:
        logits_BLV = translation_logits(model, batch, dropout_key)
        return smoothed_cross_entropy(logits_BLV, batch.targets, batch.mask, smoothing)

    def kl_loss(model: Any, batch: PairBatch, dropout_key: Key[Array, ""] | None) -> SumAndCount:
        logits_BLV = translation_logits(model, batch, dropout_key)
        return label_smoothing_kl(logits_BLV, batch.targets, batch.mask, smoothing, padding_id)

    return kl_loss if loss == "kl" else cross_entropy_loss


def translation_cross_entropy(
    model: Any, batch: PairBatch, dropout_key: Key[Array, ""] | None
) -> SumAndCount:
    """The cross-entropy of an encoder-decoder without smoothing, to validate by."""
    logits_BLV = translation_logits(model, batch, dropout_key)
    return cross_entropy(logits_BLV, batch.targets, batch.mask)


def translation_accuracy(
    model: Any, batch: PairBatch, dropout_key: Key[Array, ""] | None
) -> SumAndCount:
    """The accuracy of an encoder-decoder: how many target tokens are the likeliest."""
    logits_BLV = translation_logits(model, batch, dropout_key)
    return accuracy(logits_BLV, batch.targets, batch.mask)


def masked_token(model: Any, batch: MaskedBatch, dropout_key: Key[Array, ""] | None) -> SumAndCount:
    """The cross-entropy of BERT: each masked token from all the others."""
    logits_BLV = model(batch.tokens, batch.segments, batch.valid, dropout_key)
    return cross_entropy(logits_BLV, batch.targets, batch.mask)


def translation_logits(
    model: Any, batch: PairBatch, dropout_key: Key[Array, ""] | None
) -> Float[Array, "B L V"]:
    """Logits of the token after each input; where a target counts, the decoder reads a token."""
    # Padding follows the tokens: lengths say the same, and cuDNN's attention takes no more.
    lengths = jnp.sum(batch.source_valid, axis=-1), jnp.sum(batch.mask, axis=-1)
    return model(batch.source, batch.inputs, *lengths, dropout_key)
