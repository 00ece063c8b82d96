"""config.json: read = written, and anything else is refused by name."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxformer.config import (
    GPT_PRESETS,
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
)

CONFIG = LanguageConfig(model=GPT_PRESETS["toy"], data=DataConfig(path=Path("/text")))
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


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
        (("kind",), "bert", "'bert'"),
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


def test_differences_name_flags_but_not_the_mesh():
    other = dataclasses.replace(
        CONFIG,
        steps=7,
        model=dataclasses.replace(CONFIG.model, dropout_rate=0.5),
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
