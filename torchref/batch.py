"""The batches of a train step, one kind per objective; see jaxformer/batch.py."""

from typing import NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """Text for a GPT: each (B, L)."""

    inputs: Tensor
    targets: Tensor
    mask: Tensor


class PairBatch(NamedTuple):
    """Pairs of texts for an encoder-decoder: source (B, M), target (B, L)."""

    source: Tensor
    source_valid: Tensor
    inputs: Tensor
    targets: Tensor
    mask: Tensor


class MaskedBatch(NamedTuple):
    """Texts with some tokens masked, for BERT: each (B, L)."""

    tokens: Tensor
    segments: Tensor
    valid: Tensor
    targets: Tensor
    mask: Tensor
