"""Batches of a BERT run: windows of the token file of which some tokens are masked.

Of the tokens of a window a share is to be predicted: each becomes the mask token in 80% of the
cases, a random token in 10%, and stays in 10% (Devlin et al. 2019, section 3.1). The choice is a
pure function of (seed, batch), so every epoch masks other tokens and a validation always the same.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from jaxformer.batch import Batch, MaskedBatch
from jaxformer.data.batches import NUM_STEPS, Tokens, TrainingBatches, evaluation_batches

MASKED, RANDOM = 0.8, 0.1
"""Shares of the chosen tokens that become the mask token, and that become a random one."""


class Masking(NamedTuple):
    """How tokens are masked."""

    share: float
    """Of the tokens that are to be predicted."""
    mask_token: int
    num_tokens: int
    """Random tokens are below it."""
    seed: int

    def __call__(
        self, tokens_BL: Int[np.ndarray, "B L"], valid_BL: Bool[np.ndarray, "B L"], index: int
    ) -> MaskedBatch:
        """The batch of this index."""
        rng = np.random.default_rng((self.seed, index))
        chosen_BL = valid_BL & (rng.random(tokens_BL.shape) < self.share)
        kind_BL, random_BL = (
            rng.random(tokens_BL.shape),
            rng.integers(0, self.num_tokens, tokens_BL.shape, np.int32),
        )
        replaced_BL = np.where(kind_BL < MASKED, np.int32(self.mask_token), random_BL)
        is_replaced_BL = chosen_BL & (kind_BL < MASKED + RANDOM)
        return MaskedBatch(
            tokens=np.where(is_replaced_BL, replaced_BL, tokens_BL),
            segments=np.zeros_like(tokens_BL),
            valid=valid_BL,
            targets=tokens_BL,
            mask=chosen_BL,
        )


class MaskedTrainingBatches:
    """A grain source whose item i is the whole batch of step i: a window is what is predicted."""

    def __init__(
        self, tokens: Tokens, batch_size: int, context_length: int, seed: int, masking: Masking
    ):
        # Windows of the tokens to predict: one fewer than a GPT reads and predicts.
        self._windows = TrainingBatches(tokens, batch_size, context_length, seed)
        self._masking = masking

    def __len__(self) -> int:
        return NUM_STEPS

    def __getitem__(self, step: int) -> MaskedBatch:
        return _masked(self._windows[step], self._masking, step)


def masked_evaluation_batches(
    tokens: Tokens, batch_size: int, context_length: int, masking: Masking
) -> Iterator[MaskedBatch]:
    """Batches that hold every token but the first once, in order; the mask is always the same."""
    batches = evaluation_batches(tokens, batch_size, context_length)
    return (_masked(batch, masking, index) for index, batch in enumerate(batches))


def _masked(batch: Batch, masking: Masking, index: int) -> MaskedBatch:
    return masking(batch.targets, batch.mask, index)
