"""Remarks before the first step: what is rarely meant is said, with the flag that helps."""

import dataclasses
import re
from types import SimpleNamespace

import pytest

from jaxformer.cli.main import main
from jaxformer.config import (
    DataConfig,
    LanguageConfig,
    NumbersTranslationConfig,
    OptimizerConfig,
    RunOptions,
    TextPairsConfig,
    TextTranslationConfig,
)
from jaxformer.data.tokenizer import save_tokenizer
from jaxformer.run.load import load_run
from jaxformer.run.loop import train
from jaxformer.tasks.remarks import FEW_TOKENS, remarks
from tests.run import tiny
from tests.tokenizers_of_all_kinds import lossy_tokenizer

PAIRS = {field.name: getattr(tiny.PAIRS, field.name) for field in dataclasses.fields(tiny.PAIRS)}
TEXTS = TextTranslationConfig(**{**PAIRS, "data": TextPairsConfig()})
NUMBERS = NumbersTranslationConfig(model=tiny.PAIRS.model)
GPT = LanguageConfig(model=tiny.tiny_model())
FILES = dataclasses.replace(TEXTS.data, val_source="a", val_target="b")


def prepared(vocab_size=8000, train=FEW_TOKENS, val=FEW_TOKENS):
    """What remarks read of prepared data."""
    tokenizer = SimpleNamespace(vocab_size=vocab_size)
    return SimpleNamespace(tokenizer=tokenizer, num_train_tokens=train, num_val_tokens=val)


@pytest.mark.parametrize("config", [GPT, TEXTS, tiny.PAIRS])
def test_a_warm_up_that_reaches_the_whole_run_is_said(config):
    reached = dataclasses.replace(config, steps=config.optimizer.warmup_steps)
    (line,) = remarks(reached, prepared())
    assert f"whole run of {reached.steps:,}" in line
    assert "--steps" in line
    assert not [*remarks(dataclasses.replace(reached, steps=reached.steps + 1), prepared())]


def test_a_shorter_warm_up_is_advised_where_it_helps_and_leaves_the_peak():
    """Of the cosine with steps to spare; a Noam schedule would rise to another peak."""
    for steps, advised in ((1, None), (2, 1), (50, 5), (100, 10)):
        (line,) = remarks(dataclasses.replace(GPT, steps=steps), prepared())
        found = re.findall(r"--optimizer.warmup-steps (\d+)", line)
        assert found == ([] if advised is None else [str(advised)])
        if advised is not None:
            optimizer = dataclasses.replace(GPT.optimizer, warmup_steps=advised)
            followed = dataclasses.replace(GPT, steps=steps, optimizer=optimizer)
            assert not [*remarks(followed, prepared())]
    (line,) = remarks(dataclasses.replace(TEXTS, steps=2), prepared())
    assert "--optimizer.warmup-steps" not in line
    assert line.endswith("choose more --steps")


@pytest.mark.parametrize("config", [GPT, TEXTS, NUMBERS])
def test_a_bpe_of_fewer_tokens_than_asked_is_said(config):
    data = dataclasses.replace(config.data, tokenizer="bpe", vocab_size=777)
    config = dataclasses.replace(config, data=data, steps=9999)
    (line,) = remarks(config, prepared(776))
    assert line.endswith("--data.vocab-size 776")
    assert "--data.vocab-size 777" in line
    assert not [*remarks(config, prepared(777))]
    characters = dataclasses.replace(data, tokenizer="characters")
    assert not [*remarks(dataclasses.replace(config, data=characters), prepared(776))]


@pytest.mark.parametrize(
    ("config", "train", "val"),
    [
        (GPT, "--data.path", "--data.val-fraction"),
        (TEXTS, "--data.source and --data.target", "--data.val-fraction"),
        (
            dataclasses.replace(TEXTS, data=FILES),
            "--data.source and --data.target",
            "--data.val-source and --data.val-target",
        ),
        (NUMBERS, "--data.num-pairs", "--data.num-val-pairs"),
        (tiny.PAIRS, "--data.num-pairs", "--data.num-val-pairs"),
    ],
)
def test_a_tiny_side_is_named(config, train, val):
    config = dataclasses.replace(config, steps=9999)
    (line,) = remarks(config, prepared(train=FEW_TOKENS - 1))
    assert line.startswith("the training side has 999 tokens only")
    assert line.endswith(f"by {train}")
    (line,) = remarks(config, prepared(val=FEW_TOKENS - 1))
    assert line.startswith("the validation side has 999 tokens only")
    assert line.endswith(f"by {val}")


def test_a_run_remarks_before_its_first_step_and_a_lossy_one_with_every_sample(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("JAXFORMER_CACHE", str(tmp_path / "cache"))
    tiny.one_device(monkeypatch)
    config = tiny.tiny_config(tmp_path, steps=1, optimizer=OptimizerConfig(warmup_steps=3))
    save_tokenizer(lossy_tokenizer(), tmp_path / "tokenizer.json")
    data = DataConfig(path=config.data.path, tokenizer=str(tmp_path / "tokenizer.json"))
    outcome = train(dataclasses.replace(config, data=data), RunOptions(run_dir=tmp_path / "run"))
    said = capsys.readouterr().out.splitlines()
    warnings = [line for line in said if line.startswith("warning: ")]
    assert [*remarks(outcome.config, outcome.data)] == [line[9:] for line in warnings]
    assert len(warnings) == 2  # the warm-up, and words to validate on
    assert said.index(warnings[-1]) < said.index(next(line for line in said if "step 1/1" in line))
    assert load_run(tmp_path / "run").lost == outcome.data.lost > 0
    main(["sample", str(tmp_path / "run"), "--max-new-tokens", "1", "--prompt", "the"])
    (line,) = capsys.readouterr().err.splitlines()
    assert f"loses {outcome.data.lost:.2%} of the characters" in line
