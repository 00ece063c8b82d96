"""What is learned: functions (model, batch, keep) -> (summed loss, number of tokens)."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from torchref.batch import Batch, MaskedBatch, PairBatch
from torchref.layers.dropout import Keep
from torchref.training.loss import (
    accuracy,
    cross_entropy,
    label_smoothing_kl,
    smoothed_cross_entropy,
)

Objective = Callable[[nn.Module, Any, Keep | None], tuple[Tensor, Tensor]]


def next_token(model: nn.Module, batch: Batch, keep: Keep | None) -> tuple[Tensor, Tensor]:
    """The cross-entropy of a GPT: each token from those before it."""
    return cross_entropy(model(batch.inputs, keep=keep), batch.targets, batch.mask)


def next_token_accuracy(model: nn.Module, batch: Batch, keep: Keep | None) -> tuple[Tensor, Tensor]:
    """The accuracy of a GPT: how many tokens are the likeliest after those before them."""
    return accuracy(model(batch.inputs, keep=keep), batch.targets, batch.mask)


def translation(loss: str, smoothing: float, padding_id: int) -> Objective:
    """The smoothed loss of an encoder-decoder: each target token from those before it."""

    def cross_entropy_loss(
        model: nn.Module, batch: PairBatch, keep: Keep | None
    ) -> tuple[Tensor, Tensor]:
        return of_translation(smoothed_cross_entropy, model, batch, keep, smoothing)

    def kl_loss(model: nn.Module, batch: PairBatch, keep: Keep | None) -> tuple[Tensor, Tensor]:
        return of_translation(label_smoothing_kl, model, batch, keep, smoothing, padding_id)

    return kl_loss if loss == "kl" else cross_entropy_loss


def translation_cross_entropy(
    model: nn.Module, batch: PairBatch, keep: Keep | None
) -> tuple[Tensor, Tensor]:
    """The cross-entropy of an encoder-decoder without smoothing, to validate by."""
    return of_translation(cross_entropy, model, batch, keep)


def translation_accuracy(
    model: nn.Module, batch: PairBatch, keep: Keep | None
) -> tuple[Tensor, Tensor]:
    """The accuracy of an encoder-decoder: how many target tokens are the likeliest."""
    return of_translation(accuracy, model, batch, keep)


def masked_token(model: nn.Module, batch: MaskedBatch, keep: Keep | None) -> tuple[Tensor, Tensor]:
    """The cross-entropy of BERT: each masked token from all the others."""
    logits_BLV = model(batch.tokens, batch.segments, batch.valid, keep)
    return cross_entropy(logits_BLV, batch.targets, batch.mask)


def of_translation(
    loss: Callable[..., tuple[Tensor, Tensor]],
    model: nn.Module,
    batch: PairBatch,
    keep: Keep | None,
    *options: Any,
) -> tuple[Tensor, Tensor]:
    """A loss of the token after each input."""
    logits_BLV = model(batch.source, batch.inputs, batch.source_valid, batch.mask, keep)
    return loss(logits_BLV, batch.targets, batch.mask, *options)
