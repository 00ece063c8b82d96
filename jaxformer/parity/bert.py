"""Proofs of the whole BERT: its logits, every module on the way, and every gradient.

The input of the model is tokens, which have no gradient. In its place stands the gradient with
respect to the sum of the embeddings, which is that of the first norm's input.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxformer.config import BertConfig
from jaxformer.models.bert import Bert
from jaxformer.parity.cases import Case, dropout_key, keep_for
from jaxformer.parity.divergence import Comparison
from jaxformer.parity.twins import Proof, Twins, compare_twins
from jaxformer.weights import tables
from torchref.models import bert as torch_bert

BERT_TWINS = Twins(Bert, torch_bert.Bert, tables.BERT, "bert")


def bert_case(case: Case, **options: Any) -> Case:
    """The case with a BERT of its config's sizes; options are fields of the config."""
    names = ("vocab_size", "context_length", "width", "num_heads", "mlp_width", "num_layers")
    sizes = {name: getattr(case.config, name) for name in names}
    return dataclasses.replace(case, config=BertConfig(**sizes | {"num_segments": 3} | options))


def prove_bert(case: Case) -> Comparison:
    """Logits, every module's output and gradients, every parameter's gradient; dropout off."""
    return compare_twins(_with_rate(case, 0.0), BERT_TWINS, _inputs, "model")


def prove_bert_dropout(case: Case) -> Comparison:
    """The same with dropout on and the same masks on both sides: quantity `dropout`."""
    if case.config.dropout_rate == 0.0:
        case = _with_rate(case, 0.2)
    return compare_twins(case, BERT_TWINS, _inputs, "model", quantity="dropout")


def _with_rate(case: Case, rate: float) -> Case:
    return dataclasses.replace(case, config=dataclasses.replace(case.config, dropout_rate=rate))


def _inputs(case: Case) -> tuple[Sequence[Any], Sequence[Any]]:
    arrays = [case.tokens("tokens", case.batch, case.length), _segments(case), _valid(case)]
    key = None if case.config.dropout_rate == 0.0 else dropout_key(case)
    keep = None if key is None else keep_for(case, key)
    ours = [None if array is None else case.to_jax(array) for array in arrays]
    theirs = [None if array is None else case.to_torch(array) for array in arrays]
    return (*ours, key), (*theirs, keep)


def _segments(case: Case) -> np.ndarray | None:
    """With `segments` each row changes from one to the next at places of its own."""
    if "segments" not in case.masks:
        return None
    assert isinstance(case.config, BertConfig)
    kinds = case.rng("segments").integers(0, case.config.num_segments, (case.batch, case.length))
    return np.sort(kinds, axis=1)


def _valid(case: Case) -> np.ndarray | None:
    """`padding` ends each row at a place of its own; `nothing` leaves the last row no token."""
    if not {"padding", "nothing"} & set(case.masks):
        return None
    lengths = case.rng("padding").integers(1, case.length + 1, (case.batch, 1))
    if "padding" not in case.masks:
        lengths[:] = case.length
    if "nothing" in case.masks:
        lengths[-1] = 0
    return np.arange(case.length) < lengths


def proofs(case: Case) -> list[tuple[Proof, Case]]:
    """Every proof of the whole model, each with the case it is run on; one of them compiled."""
    plain = bert_case(case)
    segments, padded, empty = (
        dataclasses.replace(plain, masks=(*kinds, "segments"))
        for kinds in ((), ("padding",), ("nothing",))
    )
    return [
        (prove_bert, dataclasses.replace(segments, jit=True)),
        (prove_bert, plain),
        (prove_bert, padded),
        (prove_bert, empty),
        (prove_bert, bert_case(padded, use_bias=False)),
        (prove_bert_dropout, padded),
    ]
