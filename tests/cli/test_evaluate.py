"""`jaxformer evaluate`: the loop's own last validation, found again from the run directory."""

import json
import math

import pytest

from jaxformer.cli.main import main
from jaxformer.config import DataConfig, GPTConfig, LanguageConfig, MeshConfig, RunOptions
from jaxformer.run.loop import train

TEXT = "".join(f"{i} green bottles hanging on the wall.\n" for i in range(300))


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXFORMER_CACHE", str(tmp_path / "cache"))
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    config = LanguageConfig(
        model=GPTConfig(
            vocab_size=0, context_length=8, width=8, num_heads=2, mlp_width=8, num_layers=1
        ),
        data=DataConfig(path=tmp_path / "text.txt", tokenizer="bytes"),
        mesh=MeshConfig(data=8),
        steps=2,
        batch_size=8,
    )
    return train(config, RunOptions(run_dir=tmp_path / "run"))


def test_it_finds_the_losses_of_the_run_again(run, tmp_path, capsys):
    main(["evaluate", str(tmp_path / "run"), "--json", str(tmp_path / "figures.json")])
    figures = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    assert figures["step"] == 2
    assert figures["tokens"] == run.evaluation.num_tokens == len(run.data.val) - 1
    assert figures["loss"] == pytest.approx(run.evaluation.loss, rel=1e-6)
    assert figures["perplexity"] == pytest.approx(math.exp(figures["loss"]))
    # A token is a byte here.
    assert figures["bits_per_byte"] == pytest.approx(figures["loss"] / math.log(2))
    assert f"{figures['loss']:.4f} nats a token" in capsys.readouterr().out


def test_it_scores_the_other_side_too(run, tmp_path, capsys):
    main(["evaluate", str(tmp_path / "run"), "--split", "train"])
    assert f"{len(run.data.train) - 1:,} tokens" in capsys.readouterr().out


def test_a_text_that_has_changed_is_refused(run, tmp_path, capsys):
    (tmp_path / "text.txt").write_text(TEXT.upper(), encoding="utf-8")
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", str(tmp_path / "run")])
    assert stop.value.code == 2
    assert "has changed" in capsys.readouterr().err


def test_what_is_no_run_is_refused(tmp_path, capsys):
    for name in ("nothing", "."):
        with pytest.raises(SystemExit) as stop:
            main(["evaluate", str(tmp_path / name)])
        assert stop.value.code == 2
        assert capsys.readouterr().err.count("\n") == 1
