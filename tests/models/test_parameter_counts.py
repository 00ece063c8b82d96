"""The published sizes of every model, counted from shapes and by formula."""

import dataclasses

import jax
import pytest

from jaxformer.config import BERT_PRESETS, DECODER_PRESETS, GPT_PRESETS, TRANSFORMER_PRESETS
from jaxformer.models.bert import Bert
from jaxformer.models.decoder import Decoder
from jaxformer.models.functional import abstract_model, num_parameters
from jaxformer.models.gpt import GPT
from jaxformer.models.transformer import Transformer
from tests.formulas import (
    bert_parameters,
    decoder_parameters,
    gpt_parameters,
    transformer_parameters,
)

COUNTS = [
    (GPT, GPT_PRESETS["gpt2"], 124_439_808),
    (GPT, GPT_PRESETS["gpt2-medium"], 354_823_168),
    (GPT, GPT_PRESETS["gpt2-large"], 774_030_080),
    (GPT, GPT_PRESETS["gpt2-xl"], 1_557_611_200),
    # The paper's table 3 says 65 and 213 million; it does not say of how many tokens exactly.
    (Transformer, TRANSFORMER_PRESETS["small"], 7_577_600),
    (Transformer, TRANSFORMER_PRESETS["base"], 63_082_496),
    (Transformer, TRANSFORMER_PRESETS["big"], 214_245_376),
    # Of BertForMaskedLM, its decoder tied; with the pooler, which is left out, 110M and 336M.
    (Bert, BERT_PRESETS["bert-base"], 109_514_298),
    (Bert, BERT_PRESETS["bert-large"], 335_174_458),
    # Of the files on Hugging Face, tied embeddings counted once.
    *(
        (Decoder, DECODER_PRESETS[name], count)
        for name, count in {
            "llama2-7b": 6_738_415_616,
            "llama2-13b": 13_015_864_320,
            "llama2-70b": 68_976_648_192,
            "llama3-8b": 8_030_261_248,
            "llama3-70b": 70_553_706_496,
            "llama3.2-1b": 1_235_814_400,
            "llama3.2-3b": 3_212_749_824,
            "mistral-7b": 7_241_732_096,
            "qwen2-0.5b": 494_032_768,
            "qwen2-1.5b": 1_543_714_304,
            "qwen2-7b": 7_615_616_512,
            "qwen3-0.6b": 596_049_920,
            "qwen3-1.7b": 1_720_574_976,
            "qwen3-8b": 8_190_735_360,
            "smollm2-135m": 134_515_008,
            "smollm2-360m": 361_821_120,
            "smollm2-1.7b": 1_711_376_384,
            "gemma-2b": 2_506_172_416,
            "gemma-7b": 8_537_680_896,
        }.items()
    ),
]

TOYS = [
    (GPT, GPT_PRESETS["toy"]),
    (Transformer, TRANSFORMER_PRESETS["toy"]),
    (Bert, BERT_PRESETS["toy"]),
]
DECODER_TOY = DECODER_PRESETS["toy"]
FORMULAS = {
    GPT: gpt_parameters,
    Transformer: transformer_parameters,
    Bert: bert_parameters,
    Decoder: decoder_parameters,
}


def counted(model, config):
    shapes = abstract_model(model, config)[1]
    leaves = jax.tree.leaves(shapes)
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves), "nothing is allocated"
    return num_parameters(shapes)


@pytest.mark.parametrize(("model", "config", "count"), COUNTS)
def test_presets_have_their_published_parameter_counts(model, config, count):
    assert counted(model, config) == FORMULAS[model](config) == count


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("model", "config"), TOYS)
def test_the_counts_are_those_of_the_formulas(model, config, bias):
    config = dataclasses.replace(config, use_bias=bias)
    assert counted(model, config) == FORMULAS[model](config)


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("placement", ["pre", "post"])
def test_the_counts_are_those_of_the_formula_in_every_form(placement, share):
    config = dataclasses.replace(
        TRANSFORMER_PRESETS["toy"], norm_placement=placement, share_embeddings=share
    )
    assert counted(Transformer, config) == transformer_parameters(config)


@pytest.mark.parametrize(
    "option",
    [
        "post_norms",
        "qk_norm",
        "tie_embeddings",
        "attention_bias",
        "attention_out_bias",
        "mlp_bias",
    ],
)
def test_the_count_of_a_decoder_is_that_of_the_formula_with_every_option(option):
    other = dataclasses.replace(DECODER_TOY, **{option: not getattr(DECODER_TOY, option)})
    assert counted(Decoder, other) == decoder_parameters(other) != counted(Decoder, DECODER_TOY)


def test_every_preset_is_counted():
    counted_here = [config for _, config, _ in COUNTS] + [config for _, config in TOYS]
    counted_here.append(DECODER_TOY)
    tables = GPT_PRESETS, TRANSFORMER_PRESETS, BERT_PRESETS, DECODER_PRESETS
    presets = [config for table in tables for config in table.values()]
    assert all(config in counted_here for config in presets)
