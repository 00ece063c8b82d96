"""`jaxformer evaluate`: reproduces the last validation of the loop from the run directory.

For a translation run also BLEU and exact matches of what `jaxformer translate` would print.
"""

import dataclasses
import itertools
import json
import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.cli.main import main
from jaxformer.config import (
    BeamConfig,
    CheckpointConfig,
    CopyConfig,
    CopyTranslationConfig,
    DataConfig,
    GPTConfig,
    LanguageConfig,
    MeshConfig,
    NoamConfig,
    RunOptions,
    TextPairsConfig,
    TextTranslationConfig,
    TransformerConfig,
)
from jaxformer.data.pairs import Pair
from jaxformer.data.translation import prepare_pairs
from jaxformer.evaluation.bleu import score
from jaxformer.models.functional import init_params, merge
from jaxformer.models.transformer import Transformer
from jaxformer.run import directory, evaluate
from jaxformer.run.load import Run, load_run
from jaxformer.run.loop import train
from jaxformer.run.summary import score_held_out, summarise
from tests import scored

TEXT = "".join(f"{i} grüne Flaschen (Élise's!) an der Wand.\n" for i in range(300))


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXFORMER_CACHE", str(tmp_path / "cache"))
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    config = LanguageConfig(
        model=GPTConfig(
            vocab_size=0, context_length=7, width=9, num_heads=3, mlp_width=11, num_layers=1
        ),
        data=DataConfig(path=tmp_path / "text.txt", tokenizer="characters"),
        mesh=MeshConfig(data=8),
        steps=2,
        batch_size=8,
    )
    return train(config, RunOptions(run_dir=tmp_path / "run"))


def test_it_reproduces_the_loss_of_the_run(run, tmp_path, capsys):
    main(["evaluate", str(tmp_path / "run"), "--json", str(tmp_path / "figures.json")])
    figures = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    assert figures["step"] == 2
    assert figures["tokens"] == run.evaluation.num_tokens == len(run.data.val) - 1
    assert figures["loss"] == pytest.approx(run.evaluation.loss, rel=1e-6)
    assert figures["perplexity"] == pytest.approx(math.exp(figures["loss"]))
    val = TEXT[int(0.9 * len(TEXT)) :]  # a token is a character
    bits = figures["loss"] / math.log(2) * len(val) / len(val.encode())
    assert figures["bits_per_byte"] == pytest.approx(bits)
    assert figures["bytes"] == len(val.encode()) > len(val)
    assert f"{figures['loss']:.4f} nats per token" in capsys.readouterr().out


def test_a_text_that_the_tokenizer_loses_has_no_bits_per_byte(run, tmp_path, monkeypatch, capsys):
    lossy = dataclasses.replace(run.data, lost=0.25)
    monkeypatch.setattr(evaluate, "prepare", lambda data: lossy)
    main(["evaluate", str(tmp_path / "run"), "--json", str(tmp_path / "figures.json")])
    figures = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    assert figures["bits_per_byte"] is None
    assert "no bits per byte" in capsys.readouterr().out
    assert "bits per byte" in summarise(run, tmp_path / "run")
    assert "bits per byte" not in summarise(dataclasses.replace(run, data=lossy), tmp_path / "run")


def test_another_text_that_the_tokenizer_loses_has_none_either(run, tmp_path, monkeypatch):
    measured = []

    def lost_share(tokenizer, texts):
        measured.extend(texts)
        return 0.25

    monkeypatch.setattr(evaluate, "lost_share", lost_share)
    other = tmp_path / "other.txt"
    other.write_text("Flasche an Élise!\n", encoding="utf-8")
    figures = figures_of(tmp_path, tmp_path / "run", "--data.path", other)
    assert (figures["split"], figures["bits_per_byte"]) == ("other", None)
    assert measured == ["Flasche an Élise!\n"]


def test_it_scores_the_training_split_too(run, tmp_path, capsys):
    main(["evaluate", str(tmp_path / "run"), "--split", "train"])
    assert f"{len(run.data.train) - 1:,} tokens" in capsys.readouterr().out


def test_a_changed_text_is_refused(run, tmp_path, capsys):
    (tmp_path / "text.txt").write_text(TEXT.upper(), encoding="utf-8")
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", str(tmp_path / "run")])
    assert stop.value.code == 2
    line = capsys.readouterr().err
    assert str(tmp_path / "run") in line
    assert f"the run has {run.data.description}, here is text.txt" in line
    assert "Python's version" in line


def figures_of(directory, *words):
    file = directory / "figures.json"
    main(["evaluate", *map(str, words), "--json", str(file)])
    return json.loads(file.read_text(encoding="utf-8"))


def test_a_moved_text_is_the_same_text(run, tmp_path, capsys):
    before = figures_of(tmp_path, tmp_path / "run")
    (tmp_path / "text.txt").rename(tmp_path / "moved.txt")
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", str(tmp_path / "run")])
    assert stop.value.code == 2
    assert "--data.path" in capsys.readouterr().err
    moved = tmp_path / "moved.txt"
    assert figures_of(tmp_path, tmp_path / "run", "--data.path", moved) == before
    assert "other" not in capsys.readouterr().out


def test_another_text_is_scored_as_a_whole_and_called_so(run, tmp_path, capsys):
    other = tmp_path / "other.txt"
    text = "Flasche an Élise!\n" * 3
    other.write_text(text, encoding="utf-8")
    figures = figures_of(tmp_path, tmp_path / "run", "--data.path", other)
    assert (figures["split"], figures["bytes"], figures["tokens"]) == ("other", 57, 53)
    opened = load_run(tmp_path / "run")
    model, tokens = merge(opened.graphdef, opened.params), opened.tokenizer.encode(text)
    losses, right, T = [], [], opened.config.model.context_length
    for start in range(0, len(tokens) - 1, T):  # windows, as in training
        window = tokens[start : start + T + 1]
        logits = np.asarray(model(jnp.asarray(window[None, :-1])), np.float64)[0]
        chances = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        losses += [-math.log(row[token]) for row, token in zip(chances, window[1:], strict=True)]
        right += [row.max() == row[token] for row, token in zip(chances, window[1:], strict=True)]
    assert figures["loss"] == pytest.approx(sum(losses) / 53, rel=1e-5)
    assert figures["bits_per_byte"] == pytest.approx(figures["loss"] / math.log(2) * 54 / 57)
    assert figures["accuracy"] == pytest.approx(sum(right) / 53) != 0
    said = capsys.readouterr().out
    assert said.startswith("other data than those the run learned from")
    assert f" · accuracy {sum(right) / 53:.2%} · " in said
    for words in (["--split", "train"], ["--data.source", str(other)]):
        with pytest.raises(SystemExit) as stop:
            main(["evaluate", str(tmp_path / "run"), "--data.path", str(other), *words])
        assert stop.value.code == 2
        assert words[0] in capsys.readouterr().err


def test_a_file_that_cannot_be_written_is_refused_before_the_work(
    run, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("jaxformer.run.load.Run.evaluate", None)
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", str(tmp_path / "run"), "--json", str(tmp_path / "none" / "x.json")])
    assert stop.value.code == 2
    assert str(tmp_path / "none") in capsys.readouterr().err


@pytest.fixture(scope="module")
def pairs_run(tmp_path_factory):
    """A translation run on text files, as a training of no step would have left it."""
    root = tmp_path_factory.mktemp("pairs")
    sides = {"source": "one two three", "target": "eins zwei drei"}
    for side, words in sides.items():
        lines = ["".join(row) for row in itertools.product(words.split(), repeat=3)]
        (root / side).write_text("\n".join(lines) + "\n", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXFORMER_CACHE", str(root / "cache"))
        data = TextPairsConfig(
            source=root / "source", target=root / "target", tokenizer="characters", val_fraction=0.3
        )
        prepared = prepare_pairs(data)
        model = TransformerConfig(
            vocab_size=prepared.tokenizer.vocab_size + 3,
            context_length=20,
            width=8,
            num_heads=2,
            mlp_width=8,
            num_layers=1,
        )
        config = TextTranslationConfig(model=model, data=data, batch_tokens=256)
        params = init_params(Transformer, model, jax.random.key(0))
        fingerprint = prepared.fingerprint
        directory.save_params(root / "run", config, prepared.tokenizer, params, data=fingerprint)
        yield root


def test_moved_pairs_are_the_same_and_others_are_scored_as_a_whole(pairs_run, tmp_path, capsys):
    run, split = pairs_run / "run", ("--beam", "1")
    before = figures_of(tmp_path, run, *split)
    files = []
    for side in ("source", "target"):
        files += [f"--data.{side}", shutil.copy(pairs_run / side, tmp_path / f"new.{side}")]
    assert figures_of(tmp_path, run, *files, *split) == before
    for side in ("source", "target"):
        text = (pairs_run / side).read_text(encoding="utf-8").splitlines(keepends=True)
        (tmp_path / f"new.{side}").write_text("".join(text[:5]), encoding="utf-8")
    capsys.readouterr()
    figures = figures_of(tmp_path, run, *files, *split)
    assert (figures["split"], figures["pairs"]) == ("other", 5)
    sources, targets = (
        (tmp_path / f"new.{side}").read_text(encoding="utf-8").splitlines()
        for side in ("source", "target")
    )
    scores = score(load_run(run).translate(sources, BeamConfig(beam=1)), targets)
    assert (figures["bleu"], figures["exact_match"]) == (scores.bleu, scores.exact_match)
    said = capsys.readouterr().out
    assert said.startswith("other data")
    assert "of 5 pairs" in said


def test_other_pairs_longer_than_the_context_are_refused(pairs_run, tmp_path, capsys):
    words = ["evaluate", str(pairs_run / "run")]
    for side, word in (("source", "one"), ("target", "eins")):
        lines = "".join(f"{word * count}\n" for count in range(1, 8))
        (tmp_path / side).write_text(lines, encoding="utf-8")
        words += [f"--data.{side}", str(tmp_path / side)]
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    assert "the longest pair has 29 tokens" in capsys.readouterr().err


def test_one_other_pair_is_scored(pairs_run, tmp_path, capsys):
    """It is too few to be divided, so it cannot be what the run learned from."""
    words = ["evaluate", str(pairs_run / "run")]
    for side, word in (("source", "one"), ("target", "eins")):
        (tmp_path / side).write_text(f"{word}\n", encoding="utf-8")
        words += [f"--data.{side}", str(tmp_path / side)]
    main(words)
    assert "other data than those the run learned from" in capsys.readouterr().out
    (tmp_path / "source").unlink()
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2


def test_a_directory_that_is_not_a_run_is_refused(tmp_path, capsys):
    for name in ("nothing", "."):
        with pytest.raises(SystemExit) as stop:
            main(["evaluate", str(tmp_path / name)])
        assert stop.value.code == 2
        assert capsys.readouterr().err.count("\n") == 1


@pytest.fixture(scope="module")
def copy_run(tmp_path_factory):
    """A translation run with two checkpoints, shared: read only."""
    root = tmp_path_factory.mktemp("copy")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXFORMER_CACHE", str(root / "cache"))
        model = TransformerConfig(
            vocab_size=0, context_length=7, width=14, num_heads=1, mlp_width=11, num_layers=1
        )
        config = CopyTranslationConfig(
            model=model,
            data=CopyConfig(num_symbols=3, max_length=4, num_pairs=60, num_val_pairs=8),
            checkpoint=CheckpointConfig(every=2),
            optimizer=NoamConfig(factor=0.3, warmup_steps=2),
            mesh=MeshConfig(data=8),
            steps=4,
            batch_tokens=64,
        )
        yield root / "run", train(config, RunOptions(run_dir=root / "run"))


def test_a_translation_run_is_scored_too(copy_run, tmp_path, capsys):
    run_dir, outcome = copy_run
    words = ["evaluate", str(run_dir), "--json", str(tmp_path / "figures.json"), "--beam", "2"]
    main([*words, "--length-penalty", "1"])
    figures = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    assert figures["step"] == 4
    assert figures["pairs"] == 8
    assert figures["tokens"] == outcome.evaluation.num_tokens
    assert figures["loss"] == pytest.approx(outcome.evaluation.loss, rel=1e-6)
    assert figures["perplexity"] == pytest.approx(math.exp(figures["loss"]))
    assert figures["accuracy"] == pytest.approx(accuracy_by_hand(run_dir, outcome.data.val))
    pairs, beam = outcome.data.val_texts, BeamConfig(beam=2, length_penalty=1)
    translations = load_run(run_dir).translate([pair.source for pair in pairs], beam)
    scores = score(translations, [pair.target for pair in pairs])
    for name in ("bleu", "signature", "exact_match"):
        assert figures[name] == getattr(scores, name)
    assert (figures["beam"], figures["length_penalty"]) == (2, 1.0)
    shown = capsys.readouterr().out
    assert scores.signature in shown
    assert "of 8 held-out pairs" in shown


def accuracy_by_hand(run_dir, pairs) -> float:
    """Pair by pair, without padding: the share of targets, an end with each, that are likeliest."""
    run = load_run(run_dir)
    model, start, end = merge(run.graphdef, run.params), run.specials.start, run.specials.end
    right = []
    for i in range(len(pairs)):
        source, target = (np.asarray(side[i], np.int32) for side in (pairs.sources, pairs.targets))
        read, expected = np.append(start, target), np.append(target, end)
        everything = (jnp.ones((1, len(tokens)), bool) for tokens in (source, read))
        logits = model(jnp.asarray(source[None]), jnp.asarray(read[None]), *everything, None)
        right += [row.argmax() == token for row, token in zip(logits[0], expected, strict=True)]
    assert 0 < sum(right) < len(right)
    return sum(right) / len(right)


def test_scores_are_of_the_texts_as_they_are(copy_run, tmp_path, monkeypatch, capsys):
    """With case, accents and punctuation, against BLEU by its definition."""
    run_dir, outcome = copy_run
    pairs = tuple(Pair(f"Nr. {i}", text) for i, text in enumerate(scored.REFERENCES))
    data = dataclasses.replace(outcome.data, val_texts=pairs)
    asked = []

    def translate(run, sources, *options):
        asked.append(list(sources))
        return list(scored.TRANSLATIONS)

    monkeypatch.setattr(Run, "translate", translate)
    monkeypatch.setattr(evaluate, "prepare_pairs", lambda config: data)
    main(["evaluate", str(run_dir), "--json", str(tmp_path / "figures.json")])
    figures = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    assert figures["bleu"] == pytest.approx(scored.BLEU, rel=1e-9)
    assert figures["exact_match"] == pytest.approx(scored.EXACT_MATCH)
    shown = capsys.readouterr().out
    assert f"BLEU {scored.BLEU:.2f} (" in shown
    assert "exact match 33.33%" in shown
    scores = score_held_out(dataclasses.replace(outcome, data=data), run_dir, BeamConfig())
    assert scores.bleu == pytest.approx(scored.BLEU, rel=1e-9)
    assert scores.translations == scored.TRANSLATIONS
    assert asked == [["Nr. 0", "Nr. 1", "Nr. 2"]] * 2


def test_the_mean_of_checkpoints_is_scored(copy_run, tmp_path):
    figures = []
    for average in ("1", "2"):
        file = tmp_path / f"{average}.json"
        main(["evaluate", str(copy_run[0]), "--average", average, "--json", str(file)])
        figures.append(json.loads(file.read_text(encoding="utf-8")))
    assert figures[0]["loss"] != figures[1]["loss"]


def test_of_training_pairs_only_the_loss_is_measured(copy_run, capsys):
    main(["evaluate", str(copy_run[0]), "--split", "train"])
    shown = capsys.readouterr().out
    assert "train loss" in shown
    assert "BLEU" not in shown


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--split", "train", "--beam", "2"], "--beam"),
        (["--average", "9"], "not 9"),
        (["--average", "0"], "average 0"),
        (["--beam", "0"], "beam 0"),
    ],
)
def test_bad_flags_for_a_translation_run_are_refused(copy_run, capsys, words, named):
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", str(copy_run[0]), *words])
    assert stop.value.code == 2
    complaint = capsys.readouterr().err
    assert named in complaint
    assert complaint.count("\n") == 1


def test_beam_flags_are_refused_for_a_gpt(run, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", str(tmp_path / "run"), "--beam", "2", "--length-penalty", "1"])
    assert stop.value.code == 2
    assert "--beam and --length-penalty" in capsys.readouterr().err


def test_each_kind_of_run_names_its_command(run, copy_run, tmp_path, capsys):
    for command, run_dir, other in (
        ("sample", copy_run[0], "jaxformer translate"),
        ("translate", tmp_path / "run", "jaxformer sample"),
    ):
        with pytest.raises(SystemExit) as stop:
            main([command, str(run_dir)])
        assert stop.value.code == 2
        complaint = capsys.readouterr().err
        assert other in complaint
        assert complaint.count("\n") == 1


def test_a_translation_run_is_plotted(copy_run, capsys):
    (copy_run[0] / "curves.png").unlink(missing_ok=True)
    main(["plot", str(copy_run[0])])
    assert (copy_run[0] / "curves.png").is_file()


def test_translations_keep_the_order_of_their_sources(copy_run):
    run = load_run(copy_run[0])
    sources = ["abca", "a", "", "bc"]
    together = run.translate(sources, BeamConfig(beam=2))
    assert together.pop(2) == sources.pop(2) == ""
    assert together == [run.translate([text], BeamConfig(beam=2))[0] for text in sources]
