"""What some commands alone need is an extra: without it they say so at once, the others work."""

import dataclasses
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from jaxformer.cli.main import main
from jaxformer.config import (
    GPT_PRESETS,
    TRANSFORMER_PRESETS,
    CopyConfig,
    CopyTranslationConfig,
    LanguageConfig,
    RunOptions,
)
from jaxformer.data.tokenizer import ByteTokenizer, CharTokenizer
from jaxformer.evaluation.bleu import score
from jaxformer.extras import EXTRAS
from jaxformer.monitor.metrics import read_metrics
from jaxformer.run import evaluate, load, loop
from tests.run.tiny import one_device, tiny_config
from tests.runs import save_run

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture
def without(monkeypatch):
    """Let packages be missing."""

    def hide(*packages: str) -> None:
        for package in packages:
            monkeypatch.setitem(sys.modules, package, None)

    return hide


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A directory with two runs and a text, where the work of no command may begin."""

    def work(*_, **__):
        raise AssertionError("the work has begun")

    gpt = LanguageConfig(model=dataclasses.replace(GPT_PRESETS["toy"], vocab_size=256))
    save_run(tmp_path / "gpt", gpt, ByteTokenizer())
    (tmp_path / "gpt" / "metrics.jsonl").write_text('{"step": 1, "split": "train", "loss": 3.0}\n')
    copy = CopyTranslationConfig(
        model=TRANSFORMER_PRESETS["toy"], data=CopyConfig(num_symbols=3, num_pairs=9)
    )
    save_run(tmp_path / "copy", copy, CharTokenizer("abc"))
    (tmp_path / "text.txt").write_text("one\ntwo\nthree\n" * 9)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAXFORMER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(loop, "build", work)
    monkeypatch.setattr(evaluate, "evaluate_params", work)
    return tmp_path


PAIRS = "--data.source text.txt --data.target text.txt --run-dir new"


@pytest.mark.parametrize(
    ("package", "words"),
    [
        ("matplotlib", "plot gpt"),
        ("matplotlib", "attention gpt --text abc"),
        ("sacrebleu", "evaluate copy"),
        ("sacrebleu", f"train transformer_text {PAIRS}"),
        ("sacrebleu", f"train transformer_base {PAIRS}"),
        ("num2words", "train transformer_numbers --run-dir new"),
        ("babel", "train transformer_numbers --run-dir new"),
    ],
)
def test_what_is_missing_is_named_before_the_work(
    place, without, monkeypatch, package, words, capsys
):
    without(package)
    if words.startswith("attention"):
        monkeypatch.setattr(load, "load_run", None)
    before = sorted(place.rglob("*.png"))
    with pytest.raises(SystemExit) as stop:
        main(words.split())
    out, err = capsys.readouterr()
    (extra,) = (name for name, packages in EXTRAS.items() if package in packages)
    assert (stop.value.code, out, err.count("\n")) == (2, "", 1)
    assert f'{package} is not installed: pip install "jaxformer[{extra}]"' in err
    assert not (place / "new").exists()
    assert sorted(place.rglob("*.png")) == before


def test_training_without_matplotlib_leaves_out_the_curves(tmp_path, without, monkeypatch, capsys):
    one_device(monkeypatch)
    monkeypatch.setenv("JAXFORMER_CACHE", str(tmp_path / "cache"))
    without("matplotlib")
    outcome = loop.train(tiny_config(tmp_path, steps=1), RunOptions(run_dir=tmp_path / "run"))
    line = 'the curves are not drawn: matplotlib is not installed: pip install "jaxformer[plot]"\n'
    assert capsys.readouterr().err == line
    assert outcome.finished
    assert [row["split"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl")] == [
        *("train", "val"),
    ]
    assert not (tmp_path / "run" / "curves.png").exists()


def test_exact_matches_need_no_sacrebleu(without):
    without("sacrebleu")
    scores = score(["ab", "c"], ["ab ", "d"])
    assert scores.exact_match_line() == "exact match 50.00% of 2 held-out pairs"


def test_the_rest_starts_without_any_of_them():
    """Every module that training, sampling and translating need, and every `--help`."""
    absent = [package for packages in EXTRAS.values() for package in packages]
    program = (
        f"import sys; sys.modules.update(dict.fromkeys({absent}))\n"
        "import jaxformer.run.loop, jaxformer.run.summary, jaxformer.run.load\n"
        "from jaxformer.cli.main import COMMANDS, main\n"
        "for name in COMMANDS:\n"
        "    try: main([name, '--help'])\n"
        "    except SystemExit as stop: assert not stop.code\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], env=os.environ, capture_output=True, text=True
    )
    assert (ran.returncode, ran.stderr) == (0, "")


def test_the_extras_are_those_of_the_project():
    def names(requirements: list[str]) -> set[str]:
        return {"".join(c if c.isalnum() else " " for c in r).split()[0] for r in requirements}

    optional = PROJECT["optional-dependencies"]
    assert {extra: names(optional[extra]) for extra in EXTRAS} == {
        extra: set(packages) for extra, packages in EXTRAS.items()
    }
    assert not names(PROJECT["dependencies"]) & {p for ps in EXTRAS.values() for p in ps}
    assert optional["all"] == [f"jaxformer[{','.join(EXTRAS)}]"]
    assert any(requirement.startswith("jaxformer[all,") for requirement in optional["test"])
