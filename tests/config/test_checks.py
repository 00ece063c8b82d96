"""Every bound of a config's field is its own: outside it the flag and the value are refused."""

import dataclasses
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxformer import config as configs
from jaxformer.config import checks
from jaxformer.config.checks import LARGEST, Bounds, check_fields
from jaxformer.errors import UserError

GPT = configs.GPT_PRESETS["toy"]
TRANSFORMER = configs.TRANSFORMER_PRESETS["toy"]
VALID = {
    "model.": [GPT, TRANSFORMER, configs.BERT_PRESETS["toy"], configs.DECODER_PRESETS["toy"]],
    "model.rope-scaling.": [configs.RopeScaling()],
    "data.": [
        configs.DataConfig(),
        configs.TextPairsConfig(),
        configs.NumbersConfig(),
        configs.CopyConfig(),
    ],
    "optimizer.": [configs.OptimizerConfig(), configs.NoamConfig()],
    "checkpoint.": [configs.CheckpointConfig()],
    "spikes.": [configs.SpikeConfig()],
    "distributed.": [configs.DistributedConfig()],
    "": [
        configs.LanguageConfig(model=GPT),
        configs.CopyTranslationConfig(model=TRANSFORMER),
        configs.RunOptions(run_dir="run"),
        configs.SamplingConfig(),
        configs.BeamConfig(),
    ],
}
FIELDS = [
    pytest.param(valid, prefix, name, id=f"{type(valid).__name__}.{name}")
    for prefix, all_valid in VALID.items()
    for valid in all_valid
    for name in checks._limits(type(valid))
]


def outside(bounds: Bounds) -> list[float]:
    low = bounds.low if bounds.low_open else math.nextafter(bounds.low, -math.inf)
    high = bounds.high if bounds.high_open else math.nextafter(bounds.high, math.inf)
    return [low, bounds.low - 1, high, bounds.high + 1, math.nan, math.inf, -math.inf]


@pytest.mark.parametrize(("valid", "prefix", "name"), FIELDS)
def test_a_field_is_refused_outside_its_bounds_by_flag_and_value(
    valid: Any, prefix: str, name: str
) -> None:
    bounds, words = checks._limits(type(valid))[name]
    values = ["unheard-of"] if words else outside(bounds)
    flag = f"{prefix}{name.replace('_', '-')}"
    for value in values:
        with pytest.raises(UserError) as refused:
            dataclasses.replace(valid, **{name: value})
        message = str(refused.value)
        assert message.startswith(f"{flag} {value} is "), message
        assert (str(bounds) if bounds else ", ".join(words)) in message


def test_numbers_of_every_config_are_bounded() -> None:
    """A field without bounds is one that says so here."""
    free = {
        f"{type(valid).__name__}.{field.name}"
        for all_valid in VALID.values()
        for valid in all_valid
        for field in dataclasses.fields(valid)
        if field.type in (int, float, int | None, float | None)
    }
    assert free == {"DistributedConfig.process"}  # below the number of processes


@given(value=st.floats(), low=st.integers(-2, 2), width=st.integers(0, 3), ends=st.integers(0, 3))
def test_an_interval_holds_what_lies_between_its_ends(value, low, width, ends):
    low_open, high_open = bool(ends & 1), bool(ends & 2)
    bounds = Bounds(low, low + width, low_open, high_open)
    expected = (low < value or (value == low and not low_open)) and (
        value < low + width or (value == low + width and not high_open)
    )
    assert (value in bounds) == expected


@pytest.mark.parametrize(
    ("bounds", "text"),
    [
        (Bounds(1), f"[1, {LARGEST}]"),
        (Bounds(0, 1, low_open=True, high_open=True), "(0, 1)"),
        (Bounds(0, 1, high_open=True), "[0, 1)"),
    ],
)
def test_an_interval_reads_as_in_mathematics(bounds, text):
    assert str(bounds) == text


@pytest.mark.parametrize(
    ("kind", "held", "refused"),
    [
        (checks.PositiveInt, [1, LARGEST], [0, LARGEST + 1]),
        (checks.NaturalInt, [0, LARGEST], [-1]),
        (checks.PositiveFloat, [1e-30, 3e8], [0.0, -1.0]),
        (checks.NonNegativeFloat, [0.0, 3e8], [-1e-30]),
        (checks.Probability, [0.0, 0.999], [-0.1, 1.0]),
        (checks.Split, [0.001, 0.999], [0.0, 1.0]),
        (checks.VocabularySize, [0, 50_257, 2**20], [-1, 2**20 + 1]),
    ],
)
def test_the_types_of_fields_hold_what_their_names_say(kind, held, refused):
    (bounds,) = kind.__metadata__
    assert [value in bounds for value in held] == [True] * len(held)
    assert [value in bounds for value in refused] == [False] * len(refused)


def test_a_field_that_is_not_set_is_not_compared():
    check_fields(configs.SamplingConfig(top_k=None))
