"""The whole BERT against its twin, at drawn sizes and options, forwards and backwards."""

import dataclasses

import jax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxformer.config import BertConfig
from jaxformer.parity.engine.bfloat16 import prove_pooled
from jaxformer.parity.engine.cases import TINY, Case
from jaxformer.parity.proofs import bert
from jaxformer.parity.report import WIDER

MASKS = [
    (),
    ("padding",),
    ("segments",),
    ("padding", "segments"),
    ("nothing", "segments"),
    ("holes",),
]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Every option, in float64: the worst drawn case is still far from its bound."""
    config = BertConfig(
        vocab_size=draw(st.sampled_from([2, 11])),
        context_length=draw(st.sampled_from([5, 7])),
        num_segments=draw(st.sampled_from([1, 2, 4])),
        # Dropout may leave one unit of a narrower row, and the LayerNorm of one unit is constant:
        # its gradient is then mostly rounding.
        width=16,
        num_heads=draw(st.sampled_from([1, 2, 8])),
        mlp_width=draw(st.sampled_from([4, 20])),
        num_layers=draw(st.sampled_from([1, 3])),
        activation=draw(st.sampled_from(["relu", "gelu", "gelu_tanh"])),
        norm_epsilon=draw(st.sampled_from([1e-12, 1e-5])),
        use_bias=draw(st.booleans()),
        attention_dropout=draw(st.booleans()),
        dropout_rate=draw(st.sampled_from([0.1, 0.3])),
    )
    return Case(
        config,
        "float64",
        seed=draw(st.integers(0, 2**32 - 1)),
        batch=draw(st.integers(1, 3)),
        length=draw(st.sampled_from([1, 2, 5])),
        masks=draw(st.sampled_from(MASKS)),
    )


PROOFS = pytest.mark.parametrize("proof", [bert.prove_bert, bert.prove_bert_dropout])


@pytest.mark.slow  # the quick set has the report's own cases, in test_proofs.py
@PROOFS
@settings(max_examples=150)
@given(case=cases())
def test_bert_is_its_twin_in_many_cases(proof, case):
    found = proof(dataclasses.replace(case, jit=False))
    assert found.ok, [row for row in found.rows if not row.ok]


@pytest.fixture(scope="module")
def rows():
    found = bert.prove_bert(bert.bert_case(Case(TINY, masks=("segments",), jit=False)))
    assert found.ok, [row for row in found.rows if not row.ok]
    return found.rows


def test_every_parameter_has_a_gradient_that_was_compared(rows):
    compared = {row.path for row in rows if row.quantity == "param_grad"}
    _, params = bert.BERT_PAIR.draw(bert.bert_case(Case(TINY, "float32")))
    assert len(compared) == len(jax.tree.leaves(params)) == 10 + 16 * TINY.num_layers


def test_the_gradient_of_the_embedding_sum_was_compared(rows):
    compared = {row.path for row in rows if row.quantity == "input_grad"}
    assert {"embedding_norm", "embed output", "segments output"} <= compared


def test_the_masks_of_a_case_are_the_inputs_of_both_models():
    case = bert.bert_case(Case(TINY, batch=50))
    (_, segments, valid, key), _ = bert._inputs(case)
    assert (segments, valid, key) == (None, None, None)
    padded = dataclasses.replace(case, masks=("padding", "nothing", "segments"))
    (_, segments, valid, _), (_, their_segments, their_valid, _) = bert._inputs(padded)
    assert set(segments.ravel().tolist()) == {0, 1, 2}
    assert (segments == their_segments.numpy()).all()
    assert (valid == their_valid.numpy()).all()
    assert not valid[-1].any()
    assert set(valid[:-1].sum(axis=1).tolist()) == set(range(1, case.length + 1))
    assert (valid[:, :-1] >= valid[:, 1:]).all()


@pytest.mark.slow
def test_in_bfloat16_jax_is_as_near_to_the_truth_as_pytorch():
    case = bert.bert_case(Case(WIDER, "bfloat16", batch=4, length=8))
    found = prove_pooled(bert.prove_bert, case)
    assert found.ok, [row for row in found.rows if not row.ok]
