"""The published sizes of every model, counted from shapes and by formula."""

import dataclasses

import jax
import pytest

from jaxformer.config import BERT_PRESETS, GPT_PRESETS, TRANSFORMER_PRESETS
from jaxformer.models.bert import Bert
from jaxformer.models.functional import abstract_model, num_parameters
from jaxformer.models.gpt import GPT
from jaxformer.models.transformer import Transformer
from tests.formulas import bert_parameters, gpt_parameters, transformer_parameters

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
]

TOYS = [
    (GPT, GPT_PRESETS["toy"]),
    (Transformer, TRANSFORMER_PRESETS["toy"]),
    (Bert, BERT_PRESETS["toy"]),
]
FORMULAS = {GPT: gpt_parameters, Transformer: transformer_parameters, Bert: bert_parameters}


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


def test_every_preset_is_counted():
    counted_here = [config for _, config, _ in COUNTS] + [config for _, config in TOYS]
    presets = [*GPT_PRESETS.values(), *TRANSFORMER_PRESETS.values(), *BERT_PRESETS.values()]
    assert all(config in counted_here for config in presets)
