"""The table of kinds: every row is complete, and a new kind is one row."""

import dataclasses

import jax
import pytest

from jaxformer.config import (
    BERT_PRESETS,
    DECODER_PRESETS,
    GPT_PRESETS,
    RUN_CONFIGS,
    TRANSFORMER_PRESETS,
    LanguageConfig,
    MeshConfig,
    RunConfig,
)
from jaxformer.config import training as configs
from jaxformer.models.functional import abstract_model
from jaxformer.sharding.mesh import make_mesh
from jaxformer.tasks import kinds
from jaxformer.tasks.config_io import config_from_json, config_to_json
from jaxformer.tasks.kinds import KINDS, kind_of
from jaxformer.training.step import make_eval_step

NAMES = ["gpt", "decoder", "bert", "transformer_text", "transformer_numbers", "transformer_copy"]


def config_of(name: str) -> RunConfig:
    presets = {"gpt": GPT_PRESETS, "decoder": DECODER_PRESETS, "bert": BERT_PRESETS}.get(
        name, TRANSFORMER_PRESETS
    )
    return RUN_CONFIGS[name](model=presets["toy"])


def test_the_names_are_those_of_every_config_json():
    assert list(RUN_CONFIGS) == list(KINDS) == NAMES


@pytest.mark.parametrize("name", KINDS)
def test_a_row_describes_its_kind_of_run(name):
    """A batch of every shape is one that the spec's model and objective take."""
    config, kind = config_of(name), KINDS[name]
    assert kind_of(config) is kind
    assert config_to_json(config)["kind"] == name
    spec = kind.spec(config, config.model.vocab_size - kind.num_specials(config))
    graphdef, shapes = abstract_model(spec.model, config.model)
    eval_step = make_eval_step(graphdef, spec.objective)
    for batch in kind.batch_shapes(config, make_mesh(MeshConfig(data=1), jax.devices()[:1]))[:2]:
        total, count = jax.eval_shape(eval_step, shapes, batch)
        assert (total.shape, count.shape) == ((), ())
        assert kind.flops(config, batch) > 0


def test_a_new_kind_is_a_config_and_one_row(monkeypatch):
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class OtherConfig(LanguageConfig):
        kind = "other"

    monkeypatch.setitem(configs.RUN_CONFIGS, "other", OtherConfig)
    monkeypatch.setitem(kinds.KINDS, "other", KINDS["gpt"])
    config = OtherConfig(model=GPT_PRESETS["toy"])
    assert kind_of(config) is KINDS["gpt"]
    assert config_from_json(config_to_json(config), "a test") == config
