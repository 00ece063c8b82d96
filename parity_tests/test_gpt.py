"""The whole GPT against its twin, at drawn sizes and options, forwards and backwards."""

import dataclasses

import jax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxformer.config import GPTConfig
from jaxformer.parity.engine.bfloat16 import prove_pooled
from jaxformer.parity.engine.cases import TINY, Case
from jaxformer.parity.proofs import gpt


@st.composite
def cases(draw: st.DrawFn, dtypes: tuple[str, ...] = ("float64", "float32")) -> Case:
    config = GPTConfig(
        vocab_size=draw(st.sampled_from([2, 11])),
        context_length=draw(st.sampled_from([5, 7])),
        # Dropout may leave one unit of a narrower row, and the LayerNorm of one unit is constant:
        # its gradient is then mostly rounding.
        width=16,
        num_heads=draw(st.sampled_from([1, 2, 8])),
        mlp_width=draw(st.sampled_from([4, 20])),
        num_layers=draw(st.sampled_from([1, 3])),
        activation=draw(st.sampled_from(["relu", "gelu", "gelu_tanh"])),
        norm_placement=draw(st.sampled_from(["pre", "post"])),
        use_bias=draw(st.booleans()),
        dropout_rate=draw(st.sampled_from([0.1, 0.3])),
    )
    dtype = draw(st.sampled_from(dtypes))
    return Case(
        config,
        dtype,
        seed=draw(st.integers(0, 2**32 - 1)),
        batch=draw(st.integers(1, 3)) if dtype == "float64" else 4,
        length=draw(st.sampled_from([2, 5])),
        masks=draw(st.sampled_from([(), ("padding",), ("segments",), ("nothing",)])),
    )


PROOFS = pytest.mark.parametrize("proof", [gpt.prove_gpt, gpt.prove_gpt_dropout])


@pytest.mark.slow  # the quick set has the report's own cases, in test_proofs.py
@PROOFS
@settings(max_examples=4)
@given(case=cases())
def test_gpt_is_its_twin(proof, case):
    found = proof(case)
    assert found.ok, [row for row in found.rows if not row.ok]


@pytest.mark.slow  # in float64, where the worst drawn case is still far from its bound
@PROOFS
@settings(max_examples=150)
@given(case=cases(dtypes=("float64",)))
def test_gpt_is_its_twin_in_many_cases(proof, case):
    found = proof(dataclasses.replace(case, jit=False))
    assert found.ok, [row for row in found.rows if not row.ok]


def test_every_parameter_has_a_gradient_that_was_compared():
    found = gpt.prove_gpt(Case(TINY, jit=False))
    assert found.ok, [row for row in found.rows if not row.ok]
    rows = found.rows
    compared = {row.path for row in rows if row.quantity == "param_grad"}
    _, params = gpt.GPT_PAIR.draw(Case(TINY, "float32"))
    assert len(compared) == len(jax.tree.leaves(params)) == 4 + 16 * TINY.num_layers
    assert "embed output" in {row.path for row in rows if row.quantity == "input_grad"}


@pytest.mark.slow
def test_in_bfloat16_jax_is_as_near_to_the_truth_as_pytorch():
    wide = dataclasses.replace(TINY, width=32, mlp_width=61, vocab_size=31)
    found = prove_pooled(gpt.prove_gpt, Case(wide, "bfloat16", batch=4))
    assert found.ok, [row for row in found.rows if not row.ok]
