"""config.json: read = written, and anything else is refused by name."""

import contextlib
import dataclasses
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxformer.config import (
    BERT_PRESETS,
    DECODER_PRESETS,
    GPT_PRESETS,
    RUN_CONFIGS,
    TRANSFORMER_PRESETS,
    DataConfig,
    LanguageConfig,
    NumbersTranslationConfig,
)
from jaxformer.errors import UserError
from jaxformer.tasks.config_io import (
    config_from_json,
    config_to_json,
    differences,
    load_config,
    save_config,
    with_values,
)

CONFIG = LanguageConfig(model=GPT_PRESETS["toy"], data=DataConfig(path=Path("/text")))
# One key-value head, for the tests give every config one head.
DECODER = dataclasses.replace(DECODER_PRESETS["toy"], num_kv_heads=1)
CONFIGS = [
    kind(
        model={"gpt": GPT_PRESETS["toy"], "decoder": DECODER, "bert": BERT_PRESETS["toy"]}.get(
            name, TRANSFORMER_PRESETS["toy"]
        )
    )
    for name, kind in RUN_CONFIGS.items()
]
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_a_config_is_read_as_it_was_written(tmp_path):
    save_config(CONFIG, tmp_path / "config.json")
    assert load_config(tmp_path / "config.json") == CONFIG


@pytest.mark.parametrize(
    ("where", "value", "named"),
    [
        (("foo",), 1, "foo"),
        (("model", "foo"), 1, "foo"),
        (("model", "width"), 33, "model.width 33 is not divisible"),
        (("model", "width"), "32", "config.model.width"),
        (("model", "width"), 32.0, "config.model.width"),
        (("steps",), True, "config.steps"),
        (("model", "activation"), "swish", "config.model.activation"),
        (("model", "remat"), "all", "config.model.remat"),
        (("model", "remat"), 1, "config.model.remat"),
        (("kind",), "mamba", "'mamba'"),
    ],
)
def test_what_is_wrong_is_named(where, value, named):
    values = config_to_json(CONFIG)
    *path, last = where
    inner = values
    for part in path:
        inner = inner[part]
    inner[last] = value
    with pytest.raises(UserError) as refusal:
        config_from_json(values, "config.json")
    assert named in str(refusal.value)


@pytest.mark.parametrize(("saved", "meant"), [(True, "full"), (False, "none"), ("dots", "dots")])
def test_remat_was_true_or_false(saved, meant):
    values = config_to_json(CONFIG)
    values["model"]["remat"] = saved
    assert config_from_json(values, "config.json").model.remat == meant


def test_missing_and_unreadable_files_are_refused(tmp_path):
    with pytest.raises(UserError, match="missing"):
        load_config(tmp_path / "config.json")
    (tmp_path / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match="not JSON"):
        load_config(tmp_path / "config.json")


@given(JSON_VALUES)
@settings(deadline=None, max_examples=50)
def test_any_json_is_a_config_or_a_refusal(value):
    with pytest.raises(UserError):
        config_from_json(json.loads(json.dumps(value)), "config.json")
    with tempfile.TemporaryDirectory() as place:
        file = write(Path(place) / "some.json", json.dumps(value))
        with contextlib.nullcontext() if value == {} else pytest.raises(UserError):
            with_values(CONFIG, file)


def test_an_empty_path_is_not_the_working_directory(tmp_path):
    part = write(tmp_path / "part.json", '{"data": {"path": ""}}')
    with pytest.raises(UserError, match=r'data\.path is "": give a path'):
        with_values(CONFIG, part)


def test_differences_name_flags_but_not_the_mesh_nor_how_attention_is_computed():
    other = dataclasses.replace(
        CONFIG,
        steps=7,
        model=dataclasses.replace(CONFIG.model, dropout_rate=0.5, attention="plain"),
        mesh=dataclasses.replace(CONFIG.mesh, data=3),
    )
    assert differences(other, CONFIG) == [
        "--steps 7 (the run has 2000)",
        "--model.dropout-rate 0.5 (the run has 0.0)",
    ]
    assert differences(CONFIG, CONFIG) == []


def test_places_of_data_are_no_differences():
    here, there = (
        dataclasses.replace(CONFIG, data=DataConfig(path=path, tokenizer=f"{path}.json"))
        for path in (Path("here"), None)
    )
    assert differences(there, here) == []
    trained = dataclasses.replace(here, data=DataConfig(tokenizer="bpe", val_fraction=0.2))
    assert differences(trained, here) == [
        "--data.tokenizer bpe (the run has here.json)",
        "--data.val-fraction 0.2 (the run has 0.1)",
    ]
    words = [NumbersTranslationConfig(model=TRANSFORMER_PRESETS["toy"]) for _ in range(2)]
    french = dataclasses.replace(words[0].data, target_language="fr")
    assert differences(dataclasses.replace(words[0], data=french), words[1]) == [
        "--data.target-language fr (the run has de)"
    ]


def test_a_config_may_begin_with_a_byte_order_mark(tmp_path):
    path = tmp_path / "config.json"
    save_config(CONFIG, path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert load_config(path) == CONFIG


def test_a_config_is_read_without_jax():
    """The supervisor of `--restarts` reads one, and jax warns when a process that has it forks."""
    program = "import sys, jaxformer.tasks.config_io; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.kind)
def test_values_of_a_file_take_their_places(config, tmp_path):
    """A whole config.json gives its config, whatever it is laid over; a part changes that alone."""
    other = dataclasses.replace(config, steps=7, seed=8, eval_every=9)
    save_config(config, tmp_path / "config.json")
    assert with_values(other, tmp_path / "config.json") == config
    part = write(tmp_path / "part.json", '{"steps": 41, "model": {"width": 64, "num_heads": 1}}')
    model = dataclasses.replace(config.model, width=64, num_heads=1)
    assert with_values(config, part) == dataclasses.replace(config, steps=41, model=model)
    assert with_values(config, write(tmp_path / "none.json", "{}")) == config


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.kind)
def test_every_setting_refuses_what_it_cannot_be(config, tmp_path):
    def refuse(settings: dict, *above: str) -> None:
        for name, value in settings.items():
            if isinstance(value, dict):
                refuse(value, *above, name)
            content: object = []
            for part in (name, *reversed(above)):
                content = {part: content}
            with pytest.raises(
                UserError, match=rf"{'.'.join((*above, name))} is \[\]: (give|write) "
            ):
                with_values(config, write(tmp_path / "a.json", json.dumps(content)))

    values = config_to_json(config)
    del values["kind"]
    refuse(values)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('{"steps": "9"}', 'steps is "9": give a whole number'),
        ('{"steps": 1.5}', "steps is 1.5: give a whole number"),
        ('{"steps": null}', "steps is null: give a whole number"),
        ('{"steps": 0}', "steps 0 is out of range"),
        ('{"stepz": 9}', "stepz is unknown; perhaps you meant steps;"),
        (
            '{"model": {"num-heads": 1}}',
            "model.num-heads is unknown; perhaps you meant model.num_h",
        ),
        ('{"model": {"num_heads": 5}}', "num-heads 5"),
        (
            '{"model": {"dtype": "f8"}}',
            'model.dtype is "f8": give one of float32, bfloat16, float64',
        ),
        ('{"model": {"use_bias": 1}}', "model.use_bias is 1: give true or false"),
        ('{"model": 64}', "model is 64: write its settings as {...}"),
        ('{"data": {"path": 3}}', "data.path is 3: give a path or null"),
        ('{"data": {"tokenizer": null}}', "data.tokenizer is null: give a text"),
        ('{"optimizer": {"beta1": true}}', "optimizer.beta1 is true: give a number"),
        ('{"kind": "transformer_copy"}', "'transformer_copy'"),
        ('{"kind": ["gpt"]}', "['gpt']"),
        ("[9]", 'write them as {"steps": 9, ...}'),
        ("{", "is not JSON: "),
    ],
)
def test_a_file_that_cannot_be_is_named_with_its_key(text, named, tmp_path):
    with pytest.raises(UserError) as refusal:
        with_values(CONFIG, write(tmp_path / "some.json", text))
    assert str(refusal.value).startswith(str(tmp_path / "some.json"))
    assert named in str(refusal.value)
    with pytest.raises(UserError, match=r"none\.json is missing"):
        with_values(CONFIG, tmp_path / "none.json")
    with pytest.raises(UserError, match="is a directory: name a file"):
        with_values(CONFIG, tmp_path)
