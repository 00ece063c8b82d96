"""Proofs of how BERT is trained: the loss of masked tokens, and 20 steps of AdamW with dropout."""

import numpy as np

from jaxformer.batch import MaskedBatch
from jaxformer.parity.engine.cases import Case
from jaxformer.parity.engine.steps import TrainingPair, compare_objective, compare_steps
from jaxformer.parity.engine.twins import Proof, twin_config
from jaxformer.parity.proofs.bert import BERT_TWINS, bert_case
from jaxformer.parity.proofs.training import OPTIMIZER
from jaxformer.porting.locate import Comparison
from jaxformer.training import objectives, optimizer
from torchref.training import objectives as torch_objectives
from torchref.training import optimizer as torch_optimizer
from torchref.training import schedule as torch_schedule

STEPS = 20


def masked_batch(case: Case, index: int) -> MaskedBatch:
    """The batch of a training step; one slice has more tokens to find than the other."""
    rng, rows, V = np.random.default_rng([case.seed, index]), 2 * case.batch, case.config.vocab_size
    targets = rng.integers(0, V - 1, (rows, case.length))
    segments = np.sort(rng.integers(0, 2, (rows, case.length)), axis=1)
    valid = np.arange(case.length) < rng.integers(1, case.length + 1, (rows, 1))
    share = np.where(np.arange(rows) % 2 == 0, 0.6, 0.2)[:, None]
    mask = valid & (rng.random((rows, case.length)) < share)
    tokens = np.where(mask, V - 1, targets)
    return MaskedBatch(tokens, segments, valid, targets, mask)


BERT_COURSE = TrainingPair(
    BERT_TWINS,
    masked_batch,
    lambda *arguments: objectives.masked_token(*arguments),
    torch_objectives.masked_token,
    lambda case, steps: optimizer.adamw(OPTIMIZER, steps),
    lambda twin: torch_optimizer.adamw(twin, twin_config(OPTIMIZER)),
    lambda case, steps: torch_schedule.warmup_cosine(twin_config(OPTIMIZER), steps),
    OPTIMIZER.clip_norm,
)


def prove_masked_token(case: Case) -> Comparison:
    """The loss of masked tokens: sum, number of tokens, every parameter's gradient."""
    return compare_objective(case, BERT_COURSE, "masked_token")


def prove_training(case: Case) -> Comparison:
    """State and metrics after 20 steps of two slices each, dropout on.

    The key biases are left out: see `compare.ZERO_GRADIENT`.
    """
    case = case.dropping()
    return compare_steps(case, BERT_COURSE, "training", STEPS, "state")


def proofs(case: Case) -> list[tuple[Proof, Case]]:
    """Every proof of how BERT is trained, each with the case it is run on."""
    bert = bert_case(case)
    return [(prove_masked_token, bert), (prove_training, bert)]
