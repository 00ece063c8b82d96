"""Proofs of how the Transformer of 2017 is trained: both losses, schedule, Adam, 100 steps.

Batches have padding in source and target, rows of all lengths and targets of no token at all.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.batch import PairBatch
from jaxformer.config import LossKind, NoamConfig
from jaxformer.parity.engine.cases import Case
from jaxformer.parity.engine.settings import arithmetic
from jaxformer.parity.engine.steps import (
    TrainingPair,
    bound_of,
    compare_objective,
    compare_steps,
    compare_updates,
)
from jaxformer.parity.engine.twins import Proof, twin_config
from jaxformer.parity.proofs.resume import compare_resumed
from jaxformer.parity.proofs.training import STEPS, compare_losses
from jaxformer.parity.proofs.transformer import TRANSFORMER_TWINS, transformer_case
from jaxformer.porting.compare import Key, as_numpy, judge
from jaxformer.porting.locate import Comparison
from jaxformer.training import loss, objectives, optimizer, schedule
from torchref.training import loss as torch_loss
from torchref.training import objectives as torch_objectives
from torchref.training import optimizer as torch_optimizer
from torchref.training import schedule as torch_schedule

NOAM = NoamConfig(factor=0.2, warmup_steps=20)
"""Warms up within the proof; the factor keeps the path of a small model smooth."""
SMOOTHING = 0.1


def prove_smoothed_cross_entropy(case: Case) -> Comparison:
    """PyTorch's label smoothing: sum, gradient and number of tokens."""
    return compare_losses(
        case,
        "smoothed_cross_entropy",
        lambda x, t, m: loss.smoothed_cross_entropy(x, t, m, SMOOTHING),
        lambda x, t, m: torch_loss.smoothed_cross_entropy(x, t, m, SMOOTHING),
        case.tokens("targets", case.batch, case.length),
    )


def prove_annotated_kl(case: Case) -> Comparison:
    """The Annotated Transformer's label smoothing; no target is the padding token."""
    padding = case.config.vocab_size - 1
    return compare_losses(
        case,
        "label_smoothing_kl",
        lambda x, t, m: loss.label_smoothing_kl(x, t, m, SMOOTHING, padding),
        lambda x, t, m: torch_loss.label_smoothing_kl(x, t, m, SMOOTHING, padding),
        case.rng("targets").integers(0, padding, (case.batch, case.length)),
    )


def prove_noam(case: Case) -> Comparison:
    """The learning rate of the first steps, before, at and after the end of the warm-up."""
    ours, theirs = {}, {}
    count = np.arange(50)
    for warmup, width, factor in ((20, 16, 1.0), (1, 512, 0.5), (4000, 512, 1.0)):
        config = NoamConfig(warmup_steps=warmup, factor=factor)
        key = Key("noam", "update", f"{warmup} of warm-up, width {width}, factor {factor}")
        with arithmetic(case.dtype):
            learning_rate = jax.vmap(schedule.noam(config, width))
            ours[key] = as_numpy(learning_rate(jnp.asarray(count)))
        rate = torch_schedule.noam(twin_config(config), width)
        theirs[key] = np.array([rate(int(s)) for s in count])
    return Comparison.of(judge(ours, theirs, bound_of("layer", case), case.dtype, "transformer"))


def prove_adam(case: Case) -> Comparison:
    """Parameters and moments after some updates, the gradient as it is (2017)."""
    return _prove_adam(case, NOAM)


def prove_adam_clipped(case: Case) -> Comparison:
    """The same with clipping."""
    return _prove_adam(case, dataclasses.replace(NOAM, clip_norm=0.5))


def _prove_adam(case: Case, config: NoamConfig) -> Comparison:
    width, twins_config = case.config.width, twin_config(config)
    with arithmetic(case.dtype):
        adam = optimizer.adam(config, width)
    return compare_updates(
        case,
        "adam",
        adam,
        lambda twin: torch_optimizer.adam(twin, twins_config),
        torch_schedule.noam(twins_config, width),
        config.clip_norm,
    )


def pair_batch(case: Case, index: int) -> PairBatch:
    """The batch of a training step; the targets of one slice are longer than those of the other."""
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


def transformer_course(case: Case, kind: LossKind) -> TrainingPair:
    """How the Transformer of the case is trained, by either loss."""
    padding, config, width = case.specials.padding, twin_config(NOAM), case.config.width
    return TrainingPair(
        TRANSFORMER_TWINS,
        pair_batch,
        lambda *arguments: objectives.translation(kind, SMOOTHING, padding)(*arguments),
        torch_objectives.translation(kind, SMOOTHING, padding),
        lambda case, steps: optimizer.adam(NOAM, width),
        lambda twin: torch_optimizer.adam(twin, config),
        lambda case, steps: torch_schedule.noam(config, width),
        NOAM.clip_norm,
    )


def prove_translation(case: Case) -> Comparison:
    """Smoothed cross-entropy of a Transformer: sum, tokens, every parameter's gradient."""
    return compare_objective(case, transformer_course(case, "cross_entropy"), "translation")


def prove_translation_kl(case: Case) -> Comparison:
    """The same of the KL divergence."""
    return compare_objective(case, transformer_course(case, "kl"), "translation")


def prove_translation_nats(case: Case) -> Comparison:
    """The same of the cross-entropy that runs are validated by."""
    course = transformer_course(case, "cross_entropy")._replace(
        objective=lambda *arguments: objectives.translation_cross_entropy(*arguments),
        twin_objective=torch_objectives.translation_cross_entropy,
    )
    return compare_objective(case, course, "translation_cross_entropy")


def prove_accumulation(case: Case) -> Comparison:
    """One step from two slices of unequal numbers of tokens is the whole batch's at once."""
    course = transformer_course(case, "cross_entropy")
    return compare_steps(case.with_dropout(0.0), course, "accumulation", 1, "model", slices=1)


def prove_step(case: Case) -> Comparison:
    """One step of two slices, by the KL divergence, dropout on."""
    return compare_steps(case.dropping(), transformer_course(case, "kl"), "step", 1, "model")


def prove_training(case: Case) -> Comparison:
    """State and metrics after 100 steps of two slices each, dropout on.

    The key biases are left out: see `compare.ZERO_GRADIENT`.
    """
    course = transformer_course(case, "cross_entropy")
    return compare_steps(case.dropping(), course, "training", STEPS, "state")


def prove_resume(case: Case) -> Comparison:
    """Differing bytes in each leaf of a Transformer's state, dropout on, through a checkpoint."""
    return compare_resumed(case, transformer_course(case, "cross_entropy"))


def proofs(case: Case) -> list[tuple[Proof, Case]]:
    """Every proof of how the Transformer is trained, each with the case it is run on."""
    whole = transformer_case(case)
    separate = transformer_case(case, norm_placement="pre", share_embeddings=False)
    small = dataclasses.replace(whole, config=dataclasses.replace(whole.config, num_layers=1))
    functions: tuple[Proof, ...] = (
        prove_smoothed_cross_entropy,
        prove_annotated_kl,
        prove_noam,
        prove_adam,
        prove_adam_clipped,
    )
    objective: tuple[Proof, ...] = (
        prove_translation,
        prove_translation_kl,
        prove_translation_nats,
    )
    return [
        *((proof, whole) for proof in (*functions, *objective)),
        (prove_translation, separate),
        *((proof, small) for proof in (prove_accumulation, prove_step, prove_resume)),
        (prove_training, whole),
    ]
