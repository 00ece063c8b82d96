"""Proofs of the whole GPT: its logits, every module on the way, and every gradient.

The model's input is tokens, which have no gradient. The gradient with respect to the sum of the
embeddings takes its place, which is that of the embedding's output.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from jaxformer.models.gpt import GPT
from jaxformer.parity.engine.cases import Case, both_masks, dropout_key, keep_for
from jaxformer.parity.engine.comparison import Comparison, Proof
from jaxformer.parity.engine.model_pair import ModelPair, compare_pair
from torchref.models import gpt as torch_gpt

GPT_PAIR = ModelPair(GPT, torch_gpt.GPT, "gpt")


def prove_gpt(case: Case) -> Comparison:
    """Logits, every module's output and gradients, every parameter's gradient; dropout off."""
    return compare_pair(case.with_dropout(0.0), GPT_PAIR, _inputs, "model")


def prove_gpt_dropout(case: Case) -> Comparison:
    """The same with dropout on and the same masks on both sides: quantity `dropout`."""
    return compare_pair(case.dropping(), GPT_PAIR, _inputs, "model", quantity="dropout")


def _inputs(case: Case) -> tuple[Sequence[Any], Sequence[Any]]:
    tokens = case.tokens("tokens", case.batch, case.length)
    ours, theirs = both_masks(case, case.length, case.length)
    key = None if case.config.dropout_rate == 0.0 else dropout_key(case)
    keep = None if key is None else keep_for(case, key)
    return (case.to_jax(tokens), ours, key), (case.to_torch(tokens), theirs, keep)


def proofs(case: Case) -> list[tuple[Proof, Case]]:
    """Every proof of the whole model, each with the case it is run on; one of them compiled."""
    unbiased = dataclasses.replace(case.config, use_bias=False)
    return [
        (prove_gpt, dataclasses.replace(case, jit=True)),
        (prove_gpt, case),
        (prove_gpt, dataclasses.replace(case, masks=("padding", "segments"))),
        (prove_gpt, dataclasses.replace(case, config=unbiased)),
        (prove_gpt_dropout, dataclasses.replace(case, masks=("padding",))),
    ]
