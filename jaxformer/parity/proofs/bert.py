"""Proofs of the whole BERT: its logits, every module on the way, and every gradient.

The model's input is tokens, which have no gradient. The gradient with respect to the sum of the
embeddings takes its place, which is that of the first norm's input.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxformer.config import Activation, BertConfig
from jaxformer.models.bert import Bert
from jaxformer.parity.engine.cases import Case, Mask, both_inputs, valid_tokens
from jaxformer.parity.engine.comparison import Comparison, Proof
from jaxformer.parity.engine.model_pair import ModelPair, compare_pair
from torchref.models import bert as torch_bert

BERT_PAIR = ModelPair(Bert, torch_bert.Bert, "bert")


def bert_case(case: Case, **options: Any) -> Case:
    """The case with a BERT of its config's sizes; options are fields of the config."""
    return case.sized(BertConfig, **{"num_segments": 3} | options)


def prove_bert(case: Case) -> Comparison:
    """Logits, every module's output and gradients, every parameter's gradient; dropout off."""
    return compare_pair(case.with_dropout(0.0), BERT_PAIR, _inputs, "model")


def prove_bert_dropout(case: Case) -> Comparison:
    """The same with dropout on and the same masks on both sides: quantity `dropout`."""
    return compare_pair(case.dropping(), BERT_PAIR, _inputs, "model", quantity="dropout")


def _inputs(case: Case) -> tuple[Sequence[Any], Sequence[Any]]:
    tokens = case.tokens("tokens", case.batch, case.length)
    return both_inputs(case, [tokens, _segments(case), valid_tokens(case, case.length)])


def _segments(case: Case) -> np.ndarray | None:
    """With `segments` each row has its own places where one segment ends and the next begins."""
    if "segments" not in case.masks:
        return None
    assert isinstance(case.config, BertConfig)
    kinds = case.rng("segments").integers(0, case.config.num_segments, (case.batch, case.length))
    return np.sort(kinds, axis=1)


def proofs(case: Case) -> list[tuple[Proof, Case]]:
    """Every proof of the whole model, each with the case it is run on; one of them compiled.

    Together they have every value of every option of the config; in bfloat16 without ReLU, of which
    chance decides whether a number near 0 is left or right of the kink.
    """
    kinked: Activation = "gelu" if case.dtype == "bfloat16" else "relu"
    plain = bert_case(case)
    kinds: tuple[Mask, ...] = ("padding", "holes", "nothing")
    segments = dataclasses.replace(plain, masks=("segments",))
    padded, holed, empty = (dataclasses.replace(plain, masks=(k, "segments")) for k in kinds)
    return [
        (prove_bert, dataclasses.replace(segments, jit=True)),
        (prove_bert, plain),
        (prove_bert, padded),
        (prove_bert, holed.with_options(activation=kinked)),
        (prove_bert, empty),
        (prove_bert, padded.with_options(use_bias=False, activation="gelu_tanh")),
        (prove_bert_dropout, padded),
        (prove_bert_dropout, padded.with_options(attention_dropout=False)),
    ]
