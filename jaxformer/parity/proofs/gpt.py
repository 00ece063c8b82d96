"""Proofs of the whole GPT: its logits, every module on the way, and every gradient.

The model's input is tokens, which have no gradient. The gradient with respect to the sum of the
embeddings takes its place, which is that of the embedding's output.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from jaxformer.config import Activation
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
    """Every proof of the whole model, each with the case it is run on; one of them compiled.

    Together they have every value of every option of the config; in bfloat16 without ReLU, of which
    chance decides whether a number near 0 is left or right of the kink.
    """
    kinked: Activation = "gelu" if case.dtype == "bfloat16" else "relu"
    masked = dataclasses.replace(case, masks=("padding", "segments"))
    padded = dataclasses.replace(case, masks=("padding",))
    return [
        (prove_gpt, dataclasses.replace(case, jit=True)),
        (prove_gpt, case.with_options(activation=kinked)),
        (prove_gpt, masked.with_options(norm_placement="post")),
        (prove_gpt, case.with_options(use_bias=False, activation="gelu")),
        (prove_gpt_dropout, padded),
        (prove_gpt_dropout, padded.with_options(attention_dropout=False)),
    ]
