"""Objectives: functions (model, batch, dropout key) -> (summed loss, number of tokens).

Next tokens (GPT and today's decoders), translations (the encoder-decoder of Vaswani et al. 2017)
and masked tokens (BERT, Devlin et al. 2019, section 3.1). A train step knows model and batch by its
objective alone. Each cuts a large number of logits into chunks (`chunks.py`).
"""

from collections.abc import Callable
from typing import Any

from jaxtyping import Array, Key

from jaxformer.batch import Batch, MaskedBatch, PairBatch
from jaxformer.config import LossKind
from jaxformer.training.chunks import in_chunks
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
    """The cross-entropy of a language model: each token from those before it."""
    hidden_BLD, _ = model.hidden(batch.inputs, dropout_key=dropout_key)
    return in_chunks(cross_entropy, model.logits, hidden_BLD, batch.targets, batch.mask)


def next_token_accuracy(
    model: Any, batch: Batch, dropout_key: Key[Array, ""] | None
) -> SumAndCount:
    """The accuracy of a language model: how many tokens are the likeliest after those before."""
    hidden_BLD, _ = model.hidden(batch.inputs, dropout_key=dropout_key)
    return in_chunks(accuracy, model.logits, hidden_BLD, batch.targets, batch.mask)


def translation(loss: LossKind, smoothing: float, padding_id: int) -> Objective:
    """The smoothed loss of an encoder-decoder: each target token from source and those before it.

    `cross_entropy` is smoothed as PyTorch does it, `kl` as the Annotated Transformer does, which
    gives the padding token no mass.
    """

    def cross_entropy_loss(
        model: Any, batch: PairBatch, dropout_key: Key[Array, ""] | None
    ) -> SumAndCount:
        return of_translation(smoothed_cross_entropy, model, batch, dropout_key, smoothing)

    def kl_loss(model: Any, batch: PairBatch, dropout_key: Key[Array, ""] | None) -> SumAndCount:
        options = smoothing, padding_id
        return of_translation(label_smoothing_kl, model, batch, dropout_key, *options)

    return kl_loss if loss == "kl" else cross_entropy_loss


def translation_cross_entropy(
    model: Any, batch: PairBatch, dropout_key: Key[Array, ""] | None
) -> SumAndCount:
    """The cross-entropy of an encoder-decoder without smoothing, to validate by."""
    return of_translation(cross_entropy, model, batch, dropout_key)


def translation_accuracy(
    model: Any, batch: PairBatch, dropout_key: Key[Array, ""] | None
) -> SumAndCount:
    """The accuracy of an encoder-decoder: how many target tokens are the likeliest."""
    return of_translation(accuracy, model, batch, dropout_key)


def masked_token(model: Any, batch: MaskedBatch, dropout_key: Key[Array, ""] | None) -> SumAndCount:
    """The cross-entropy of BERT: each masked token from all the others."""
    # Padding follows the tokens: lengths say the same, and cuDNN's attention takes no more.
    lengths_B = batch.valid.sum(-1)
    hidden_BLD = model.hidden(batch.tokens, batch.segments, lengths_B, dropout_key)
    return in_chunks(cross_entropy, model.logits, hidden_BLD, batch.targets, batch.mask)


def masked_token_accuracy(
    model: Any, batch: MaskedBatch, dropout_key: Key[Array, ""] | None
) -> SumAndCount:
    """The accuracy of BERT: how many masked tokens are the likeliest at their places."""
    lengths_B = batch.valid.sum(-1)
    hidden_BLD = model.hidden(batch.tokens, batch.segments, lengths_B, dropout_key)
    return in_chunks(accuracy, model.logits, hidden_BLD, batch.targets, batch.mask)


def of_translation(
    loss: Callable[..., SumAndCount],
    model: Any,
    batch: PairBatch,
    dropout_key: Key[Array, ""] | None,
    *options: Any,
) -> SumAndCount:
    """A loss of the token after each input; where a target counts, the decoder reads a token."""
    # Padding follows the tokens: lengths say the same, and cuDNN's attention takes no more.
    source_lengths_B, target_lengths_B = batch.source_valid.sum(-1), batch.mask.sum(-1)
    memory_BMD = model.encode(batch.source, source_lengths_B, dropout_key)
    lengths = target_lengths_B, source_lengths_B
    hidden_BLD, _ = model.hidden(batch.inputs, memory_BMD, *lengths, dropout_key)
    return in_chunks(loss, model.logits, hidden_BLD, batch.targets, batch.mask, *options)
