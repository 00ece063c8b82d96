"""Every layer against its twin, at drawn shapes and options, forwards and backwards."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxformer.config import GPTConfig
from jaxformer.parity.engine.bfloat16 import prove_pooled
from jaxformer.parity.engine.cases import Case
from jaxformer.parity.proofs import layers
from parity_tests.dtypes import EACH_DTYPE

PROOFS = [
    layers.prove_masks,
    layers.prove_sinusoid,
    layers.prove_positions,
    layers.prove_layer_norm,
    layers.prove_attention_function,
    layers.prove_attention,
    layers.prove_query_blocks_attention,
    layers.prove_blockwise_attention,
    layers.prove_cross_attention,
    layers.prove_mlp,
    layers.prove_block,
    layers.prove_decoder_block,
]
MASKS = [(), ("causal",), ("padding",), ("segments",), ("nothing",), ("causal", "padding")]


# Width and heads, width of the MLP, context, rows, length, and length of the memory.
FEW_SIZES = st.sampled_from([((8, 1), 19, 5, 2, 1, 3), ((12, 3), 5, 7, 3, 5, 1)])
"""What costs time is compiling another shape."""
MANY_SIZES = st.tuples(
    st.sampled_from([(8, 1), (8, 4), (12, 3)]),
    st.sampled_from([5, 19]),
    st.sampled_from([5, 7]),
    st.integers(1, 3),
    st.sampled_from([1, 5]),
    st.sampled_from([1, 3]),
)


@st.composite
def cases(draw: st.DrawFn, sizes: st.SearchStrategy) -> Case:
    """Every option, in float64, where the worst case is still far from its bound."""
    (width, num_heads), mlp_width, context_length, batch, length, memory = draw(sizes)
    config = GPTConfig(
        vocab_size=7,
        context_length=context_length,
        width=width,
        num_heads=num_heads,
        mlp_width=mlp_width,
        num_layers=1,
        activation=draw(st.sampled_from(["relu", "gelu", "gelu_tanh"])),
        norm_placement=draw(st.sampled_from(["pre", "post"])),
        norm_epsilon=draw(st.sampled_from([1e-5, 1e-3])),
        use_bias=draw(st.booleans()),
        dropout_rate=draw(st.sampled_from([0.0, 0.3])),
    )
    return Case(
        config,
        seed=draw(st.integers(0, 2**32 - 1)),
        batch=batch,
        length=length,
        memory=memory,
        masks=draw(st.sampled_from(MASKS)),
        jit=False,  # most operations repeat; the next test compiles
    )


@pytest.mark.parametrize("proof", PROOFS)
@given(case=cases(FEW_SIZES))
def test_layer_is_its_twin(proof, case):
    found = proof(case)
    assert found.ok, [row for row in found.rows if not row.ok]


@pytest.mark.parametrize("dtype", EACH_DTYPE)
@pytest.mark.parametrize("proof", PROOFS)
def test_compiled_too_layer_is_its_twin(proof, dtype):
    found = proof(Case(layers_config(dropout_rate=0.3), dtype, masks=("causal", "padding")))
    assert found.ok, [row for row in found.rows if not row.ok]


@pytest.mark.slow
@pytest.mark.parametrize("proof", PROOFS)
@settings(max_examples=200)
@given(case=cases(MANY_SIZES))
def test_layer_is_its_twin_in_many_cases(proof, case):
    found = proof(case)
    assert found.ok, [row for row in found.rows if not row.ok]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_layer_norm_far_from_zero_is_its_twin(dtype):
    found = layers.prove_layer_norm_far(Case(layers_config(), dtype))
    assert found.ok, found.rows


@pytest.mark.parametrize("masks", [*MASKS[:3], ("nothing",), ("causal", "padding")])
def test_flash_attention_is_its_twin_in_float32(masks):
    """By the same call without cuDNN; its softmax is float32, so there is no more in float64."""
    found = layers.prove_flash_attention(Case(layers_config(), "float32", masks=masks, jit=False))
    assert found.ok, [row for row in found.rows if not row.ok]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_dropout_is_its_twin(dtype):
    found = layers.prove_dropout(Case(layers_config(dropout_rate=0.4), dtype))
    assert found.ok, found.rows


@pytest.mark.parametrize(
    "proof",
    [
        layers.prove_attention,
        layers.prove_query_blocks_attention,
        layers.prove_blockwise_attention,
        layers.prove_flash_attention,
        layers.prove_mlp,
        layers.prove_block,
        layers.prove_decoder_block,
        layers.prove_layer_norm,
    ],
)
def test_in_bfloat16_jax_is_as_near_to_the_truth_as_pytorch(proof):
    case = Case(layers_config(width=32, mlp_width=61), "bfloat16", batch=4)
    found = prove_pooled(proof, dataclasses.replace(case, masks=("causal",)))
    assert found.ok, [row for row in found.rows if not row.ok]


def layers_config(**options):
    sizes = {"width": 16, "num_heads": 4, "mlp_width": 31} | options
    return GPTConfig(vocab_size=7, context_length=7, num_layers=1, **sizes)
