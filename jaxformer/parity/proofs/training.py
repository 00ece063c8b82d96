"""Proofs of how each model is trained: its objective, single steps, slices of a batch, 100 steps.

`TRAINING` has a row for each model; a proof takes the row of its case's model.
"""

from collections.abc import Mapping

import numpy as np

from jaxformer.batch import Batch, MaskedBatch, PairBatch
from jaxformer.config import (
    BertConfig,
    DecoderConfig,
    GPTConfig,
    LossKind,
    TransformerConfig,
)
from jaxformer.parity.engine.cases import Case
from jaxformer.parity.engine.comparison import Comparison, Proof, late
from jaxformer.parity.engine.training_pair import TrainingPair, compare_objective, compare_steps
from jaxformer.parity.proofs.bert import BERT_PAIR, bert_case
from jaxformer.parity.proofs.decoder import DECODER_PAIR, GEMMA2, MISTRAL
from jaxformer.parity.proofs.decoder_layers import decoder_case
from jaxformer.parity.proofs.gpt import GPT_PAIR
from jaxformer.parity.proofs.losses import SMOOTHING
from jaxformer.parity.proofs.optimizers import MUON, NOAM, OPTIMIZER, adam, adamw, muon
from jaxformer.parity.proofs.transformer import TRANSFORMER_PAIR, transformer_case
from jaxformer.training import objectives
from torchref.training import objectives as torch_objectives


def text_batch(case: Case, index: int) -> Batch:
    """Inputs, targets and mask of a step of a language model."""
    rng = np.random.default_rng([case.seed, index])
    text = rng.integers(0, case.config.vocab_size, (2 * case.batch, case.length + 1))
    keep = np.where(np.arange(2 * case.batch) % 2 == 0, 0.95, 0.4)[:, None]
    mask = rng.random((2 * case.batch, case.length)) < keep
    return Batch(text[:, :-1], text[:, 1:], mask)


def pair_batch(case: Case, index: int) -> PairBatch:
    """Sources and targets of a step of the Transformer, of all lengths; a target may be empty."""
    rng, tokens = np.random.default_rng([case.seed, index]), case.specials
    rows, M, L = 2 * case.batch, case.memory, case.length
    sizes = rng.integers(1, M + 1, (rows, 1))
    source_valid = np.arange(M) < sizes
    source = np.where(source_valid, rng.integers(0, tokens.padding, (rows, M)), tokens.padding)

    longest = np.where(np.arange(rows) % 2 == 0, L - 1, L // 2)[:, None]
    sizes = rng.integers(longest // 2, longest + 1)
    text = rng.integers(0, tokens.padding, (rows, L))
    mask = np.arange(L) <= sizes
    ended = np.where(np.arange(L) == sizes, tokens.end, text)
    shifted = np.concatenate([np.full((rows, 1), tokens.start), text[:, :-1]], axis=1)
    inputs, targets = (np.where(mask, side, tokens.padding) for side in (shifted, ended))
    return PairBatch(source, source_valid, inputs, targets, mask)


def masked_batch(case: Case, index: int) -> MaskedBatch:
    """Texts of a step of BERT, of several segments, padded, with masked tokens to predict."""
    rng, rows, V = np.random.default_rng([case.seed, index]), 2 * case.batch, case.config.vocab_size
    targets = rng.integers(0, V - 1, (rows, case.length))
    segments = np.sort(rng.integers(0, 2, (rows, case.length)), axis=1)
    valid = np.arange(case.length) < rng.integers(1, case.length + 1, (rows, 1))
    share = np.where(np.arange(rows) % 2 == 0, 0.6, 0.2)[:, None]
    mask = valid & (rng.random((rows, case.length)) < share)
    tokens = np.where(mask, V - 1, targets)
    return MaskedBatch(tokens, segments, valid, targets, mask)


def _translation(kind: LossKind) -> TrainingPair:
    """The Transformer, trained by either of its losses."""

    def options(case: Case) -> tuple[LossKind, float, int]:
        return kind, SMOOTHING, case.specials.padding

    return TrainingPair(
        TRANSFORMER_PAIR,
        pair_batch,
        lambda case: late(lambda: objectives.translation(*options(case))),
        lambda case: torch_objectives.translation(*options(case)),
        adam(NOAM),
        "translation",
    )


GPT_TRAINING = TrainingPair(
    GPT_PAIR,
    text_batch,
    lambda case: late(lambda: objectives.next_token),
    lambda case: torch_objectives.next_token,
    adamw(OPTIMIZER),
    "next_token",
)
DECODER_TRAINING = GPT_TRAINING._replace(models=DECODER_PAIR, optimizers=muon(MUON))
TRANSFORMER_TRAINING = _translation("cross_entropy")
TRANSFORMER_TRAINING_KL = _translation("kl")
TRANSFORMER_VALIDATION = TRANSFORMER_TRAINING._replace(
    objective=lambda case: late(lambda: objectives.translation_cross_entropy),
    twin_objective=lambda case: torch_objectives.translation_cross_entropy,
    objective_name="translation_cross_entropy",
)
BERT_TRAINING = TrainingPair(
    BERT_PAIR,
    masked_batch,
    lambda case: late(lambda: objectives.masked_token),
    lambda case: torch_objectives.masked_token,
    adamw(OPTIMIZER),
    "masked_token",
    steps=20,
)

TRAINING: Mapping[type, TrainingPair] = {
    GPTConfig: GPT_TRAINING,
    DecoderConfig: DECODER_TRAINING,
    TransformerConfig: TRANSFORMER_TRAINING,
    BertConfig: BERT_TRAINING,
}


def prove_objective(case: Case) -> Comparison:
    """The objective that the model is trained by: sum, tokens, every parameter's gradient."""
    return compare_objective(case, TRAINING[type(case.config)])


def prove_objective_kl(case: Case) -> Comparison:
    """The same of the Transformer's other loss, the KL divergence."""
    return compare_objective(case, TRANSFORMER_TRAINING_KL)


def prove_objective_validation(case: Case) -> Comparison:
    """The same of the cross-entropy that translation runs are validated by."""
    return compare_objective(case, TRANSFORMER_VALIDATION)


def prove_accumulation(case: Case) -> Comparison:
    """One step from two slices of unequal numbers of tokens is the step of the whole batch."""
    pair = TRAINING[type(case.config)]
    return compare_steps(case.with_dropout(0.0), pair, "accumulation", 1, "model", slices=1)


def prove_step(case: Case) -> Comparison:
    """Three steps of two slices each, dropout on."""
    return compare_steps(case.dropping(), TRAINING[type(case.config)], "step", 3, "model")


def prove_step_kl(case: Case) -> Comparison:
    """One step of the Transformer by the KL divergence, of two slices, dropout on."""
    return compare_steps(case.dropping(), TRANSFORMER_TRAINING_KL, "step", 1, "model")


def prove_remat(case: Case) -> Comparison:
    """One step of two slices, dropout on; the case says what the backward pass computes again."""
    return compare_steps(case.dropping(), TRAINING[type(case.config)], "remat", 1, "model")


def prove_scan(case: Case) -> Comparison:
    """One step of two slices, dropout on, of a model whose layers are scanned."""
    scanned = case.dropping().with_options(scan_layers=True)
    return compare_steps(scanned, TRAINING[type(case.config)], "scan", 1, "model")


def prove_training(case: Case) -> Comparison:
    """State and metrics after all steps of the row, of two slices each, dropout on.

    The key biases are left out: see `compare.ZERO_GRADIENT`.
    """
    pair = TRAINING[type(case.config)]
    return compare_steps(case.dropping(), pair, "training", pair.steps, "state")


def one_layer(case: Case) -> Case:
    """The case with a model of one layer, which has every kind of leaf."""
    return case.with_options(num_layers=1)


def gpt_proofs(case: Case) -> list[tuple[Proof, Case]]:
    """Every proof of how GPT is trained, each with the case it is run on."""
    return [
        (prove_accumulation, one_layer(case)),
        (prove_remat, one_layer(case).with_options(remat="dots")),
        (prove_remat, one_layer(case).with_options(remat="full")),
        (prove_scan, case.with_options(remat="dots")),
        (prove_training, case),
    ]


def decoder_proofs(case: Case) -> list[tuple[Proof, Case]]:
    """The same of a decoder."""
    whole = decoder_case(case, **MISTRAL)
    return [
        (prove_objective, decoder_case(case, **GEMMA2)),
        (prove_remat, one_layer(whole).with_options(remat="full")),
        (prove_scan, whole.with_options(remat="dots")),
        (prove_training, whole),
    ]


def transformer_proofs(case: Case) -> list[tuple[Proof, Case]]:
    """The same of the Transformer."""
    whole = transformer_case(case)
    separate = transformer_case(case, norm_placement="pre", share_embeddings=False)
    return [
        (prove_objective, whole),
        (prove_objective_kl, whole),
        (prove_objective_validation, whole),
        (prove_objective, separate),
        (prove_accumulation, one_layer(whole)),
        (prove_step_kl, one_layer(whole)),
        (prove_scan, whole),
        (prove_training, whole),
    ]


def bert_proofs(case: Case) -> list[tuple[Proof, Case]]:
    """The same of BERT."""
    proofs = prove_objective, prove_scan, prove_training
    return [(proof, bert_case(case)) for proof in proofs]
