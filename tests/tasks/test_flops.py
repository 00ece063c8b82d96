"""Operations counted from the shapes of kernels are those of the closed formulas."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from jaxformer.batch import Batch, PairBatch
from jaxformer.config import (
    BERT_PRESETS,
    DECODER_PRESETS,
    GPT_PRESETS,
    TRANSFORMER_PRESETS,
    DecoderLanguageConfig,
    LanguageConfig,
    TextTranslationConfig,
)
from jaxformer.models.bert import Bert
from jaxformer.tasks.flops import training_flops
from jaxformer.tasks.kinds import step_cost
from jaxformer.tasks.language_modeling import language_flops
from jaxformer.tasks.translation import translation_flops
from tests.formulas import decoder_flops, gpt_flops, transformer_flops


def text(rows: int, length: int) -> Batch:
    tokens = jax.ShapeDtypeStruct((rows, length), jnp.int32)
    return Batch(tokens, tokens, tokens)


def pairs(rows: int, source_length: int, target_length: int) -> PairBatch:
    source, target = (
        jax.ShapeDtypeStruct((rows, length), jnp.int32) for length in (source_length, target_length)
    )
    return PairBatch(source, source, target, target, target)


@pytest.mark.parametrize("name", GPT_PRESETS)
@pytest.mark.parametrize("bias", [True, False])
def test_of_a_gpt(name, bias):
    config = dataclasses.replace(GPT_PRESETS[name], use_bias=bias)
    found = language_flops(LanguageConfig(model=config), text(3, 16))
    assert found == gpt_flops(config, 3, 16)


def test_of_gpt2_by_hand():
    weights = 12 * 12 * 768**2 + 50_257 * 768  # matrices of 12 blocks, and the logits
    expected = 6 * weights + 12 * 12 * 768 * 1024
    found = language_flops(LanguageConfig(model=GPT_PRESETS["gpt2"]), text(2, 1024))
    assert found == pytest.approx(2 * 1024 * expected)


@pytest.mark.parametrize("name", ["toy", "llama3-8b", "gemma-2b"])
def test_of_a_decoder(name):
    config = DECODER_PRESETS[name]
    found = language_flops(DecoderLanguageConfig(model=config), text(3, 16))
    assert found == decoder_flops(config, 3, 16)


@pytest.mark.parametrize("name", TRANSFORMER_PRESETS)
@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize(("M", "L"), [(50, 50), (51, 50), (7, 20)])
def test_of_a_transformer(name, share, M, L):
    config = dataclasses.replace(TRANSFORMER_PRESETS[name], share_embeddings=share)
    found = translation_flops(TextTranslationConfig(model=config), pairs(7, M, L))
    assert found == transformer_flops(config, 7, M, L)


def test_of_a_bert():
    """The blocks of a GPT, a dense layer before the tied logits: D² more per token."""
    config = BERT_PRESETS["toy"]
    found = training_flops(Bert, config, 3, lambda path: 16)
    assert found == gpt_flops(config, 3, 16) + 6 * 3 * 16 * config.width**2


def test_the_cost_of_a_step_counts_targets_in_the_loss_and_operations_of_the_whole_batch():
    config = LanguageConfig(model=GPT_PRESETS["toy"])
    mask = jnp.arange(16) < jnp.array([[5], [16]])
    cost = step_cost(config, Batch(mask, mask, mask))
    assert cost == (21, gpt_flops(config.model, 2, 16))
