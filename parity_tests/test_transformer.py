"""The encoder-decoder against its twin, at drawn sizes and options, forwards and backwards."""

import dataclasses

import jax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxformer.config import TransformerConfig
from jaxformer.parity.engine.bfloat16 import prove_pooled
from jaxformer.parity.engine.cases import TINY, Case
from jaxformer.parity.proofs import transformer
from jaxformer.parity.proofs.transformer import transformer_case
from jaxformer.parity.report import WIDER

MASKS = ["padding", "source padding", "target padding", "holes", "nothing"]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Few sizes but every option, in float64: the worst drawn case is still far from its bound."""
    config = TransformerConfig(
        vocab_size=11,
        context_length=7,
        # Widths under 16 are ill-conditioned: dropout may leave one unit of a row, and the
        # LayerNorm of one unit is constant: its gradient is then mostly rounding.
        width=16,
        num_heads=draw(st.sampled_from([1, 4])),
        mlp_width=20,
        num_layers=draw(st.sampled_from([1, 2])),
        activation=draw(st.sampled_from(["relu", "gelu", "gelu_tanh"])),
        norm_placement=draw(st.sampled_from(["pre", "post"])),
        use_bias=draw(st.booleans()),
        share_embeddings=draw(st.booleans()),
        attention_dropout=draw(st.booleans()),
        dropout_rate=draw(st.sampled_from([0.1, 0.3])),
    )
    return Case(
        config,
        "float64",
        seed=draw(st.integers(0, 2**32 - 1)),
        length=draw(st.sampled_from([1, 2, 5])),
        memory=draw(st.sampled_from([3, 7])),
        masks=draw(st.sets(st.sampled_from(MASKS), max_size=3).map(tuple)),
        jit=False,
    )


PROOFS = pytest.mark.parametrize(
    "proof",
    [
        transformer.prove_transformer,
        transformer.prove_transformer_dropout,
        transformer.prove_transformer_cache,
    ],
)


@pytest.mark.slow  # the quick set has the report's own cases, in test_proofs.py
@PROOFS
@settings(max_examples=100)
@given(case=cases())
def test_transformer_is_its_twin_in_many_cases(proof, case):
    found = proof(case)
    assert found.ok, [row for row in found.rows if not row.ok]


@pytest.mark.parametrize(("share", "placement"), [(True, "post"), (False, "pre")])
def test_every_parameter_has_a_gradient_that_was_compared(share, placement):
    case = Case(TINY, masks=("padding",), jit=False)
    case = transformer_case(case, share_embeddings=share, norm_placement=placement)
    found = transformer.prove_transformer(case)
    assert found.ok, [row for row in found.rows if not row.ok]
    compared = {row.path for row in found.rows if row.quantity == "param_grad"}
    _, params = transformer.TRANSFORMER_PAIR.draw(dataclasses.replace(case, dtype="float32"))
    blocks = TINY.num_layers * (16 + 26)
    outside = (1 if share else 3) + (4 if placement == "pre" else 0)
    assert len(compared) == len(jax.tree.leaves(params)) == blocks + outside
    inputs = {row.path for row in found.rows if row.quantity == "input_grad"}
    embeddings = {"embed output", "embed#2 output"}
    if not share:
        embeddings = {"source_embed output", "target_embed output"}
    assert embeddings | {"encoder", "decoder", "decoder[1]"} <= inputs


@pytest.mark.slow
def test_in_bfloat16_jax_is_as_near_to_the_truth_as_pytorch():
    case = transformer_case(Case(WIDER, "bfloat16", length=12), activation="gelu")
    found = prove_pooled(transformer.prove_transformer, case)
    assert found.ok, [row for row in found.rows if not row.ok]
