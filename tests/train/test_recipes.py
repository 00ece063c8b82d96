"""Recipes as a user runs them: presets as published, refusals in one line, help at once."""

import dataclasses
import importlib
import re
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from jaxformer.cli.arguments import run_command
from jaxformer.errors import UserError
from jaxformer.evaluation.loss import Evaluation
from jaxformer.models.decoder import Decoder
from jaxformer.models.functional import abstract_model, num_parameters
from jaxformer.models.gpt import GPT
from jaxformer.run import loop
from jaxformer.run.load import load_run
from jaxformer.sharding.mesh import make_mesh
from tests.run import forked
from tests.run.tiny import one_device
from train import (
    decoder_stdlib,
    gpt2_124m,
    gpt_char,
    gpt_stdlib,
    transformer_base,
    transformer_copy,
)

TINY = [
    *("--model.width", "8", "--model.num-heads", "2", "--model.mlp-width", "8"),
    *("--model.num-layers", "1", "--model.context-length", "8", "--batch-size", "8"),
    *("--steps", "3", "--data.vocab-size", "300"),
]
TINY_TRANSFORMER = [
    *("--model.width", "8", "--model.num-heads", "2", "--model.mlp-width", "8"),
    *("--model.num-layers", "1", "--steps", "3"),
    *("--batch-tokens", "128", "--checkpoint.every", "2"),
]
FLAGS = {
    *("--preset", "--config", "--run-dir", "--steps", "--stop-after", "--batch-size", "--seed"),
    *("--resume", "--compile-cache", "--help-all"),
}
OWN_FLAGS = {
    "decoder_stdlib": {"--data.path"},
    "gpt_char": {"--data.path"},
    "gpt_stdlib": {"--data.path"},
    "gpt2_124m": {"--data.path"},
    "transformer_base": {"--batch-tokens", "--data.source", "--data.target", "--data.val-source"},
    "transformer_copy": {"--batch-tokens", "--data.max-length"},
    "transformer_numbers": {"--batch-tokens", "--data.target-language"},
    "transformer_text": {"--batch-tokens", "--data.source", "--data.target", "--data.val-source"},
}
"""What each recipe's own kind of data needs; a name here is a recipe."""


def run(name: str, *words: str) -> subprocess.CompletedProcess[str]:
    return forked.run("jaxformer", ["train", name, *words])


def test_char_presets_are_the_published_settings():
    cpu, gpu = gpt_char.PRESETS["cpu"], gpt_char.PRESETS["gpu"]
    sizes = [(c.model.num_layers, c.model.num_heads, c.model.width) for c in (cpu, gpu)]
    assert sizes == [(4, 4, 128), (6, 6, 384)]
    lengths = [(c.model.context_length, c.batch_size, c.steps) for c in (cpu, gpu)]
    assert lengths == [(64, 12, 2000), (256, 64, 5000)]
    assert [c.model.dropout_rate for c in (cpu, gpu)] == [0.0, 0.2]
    for config in (cpu, gpu):
        optimizer = config.optimizer
        rates = optimizer.peak_learning_rate, optimizer.floor_learning_rate, optimizer.warmup_steps
        assert rates == (1e-3, 1e-4, 100)
        assert (optimizer.beta2, optimizer.weight_decay, optimizer.clip_norm) == (0.99, 0.1, 1.0)
        assert config.data.val_fraction == pytest.approx(0.1)
        # Two departures, which the recipe owns up to: biases, and GPT-2's 0.02 scaled to the width.
        assert config.model.use_bias
        assert config.model.init_std == pytest.approx(
            0.02 * (768 / config.model.width) ** 0.5, abs=3e-3
        )
    assert "Two settings are not the published ones" in gpt_char.__doc__


@pytest.mark.parametrize("name", OWN_FLAGS)
def test_help_shows_the_command_and_loads_nothing_heavy(name):
    script = (
        "import sys\n"
        "from jaxformer.cli import train\n"
        "try:\n"
        f"    train.main(['{name}', '--help'])\n"
        "finally:\n"
        "    heavy = {'jax', 'flax', 'torch', 'matplotlib', 'orbax', 'grain', 'numpy'}\n"
        "    assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    assert f"    jaxformer train {name}" in shown.stdout
    assert set(re.findall(r"--[a-z.-]+", shown.stdout)) >= FLAGS | OWN_FLAGS[name]


def test_the_decoder_learns_the_demos_tokens_with_about_its_parameters():
    demo, modern = gpt_stdlib.PRESETS["demo"], decoder_stdlib.PRESETS["demo"]
    for name in ("data", "checkpoint", "steps", "batch_size", "eval_every", "accumulation"):
        assert getattr(demo, name) == getattr(modern, name), name
    assert demo.model.context_length == modern.model.context_length
    sizes = []
    for model, config in ((GPT, demo.model), (Decoder, modern.model)):
        config = dataclasses.replace(config, vocab_size=4096)
        sizes.append(num_parameters(abstract_model(model, config)[1]))
    assert sizes[1] == pytest.approx(sizes[0], rel=0.05)


@pytest.mark.parametrize("kernels", ["muon", pytest.param("adamw", marks=pytest.mark.slow)])
def test_the_decoder_starts_resumes_samples_and_is_evaluated(tmp_path, monkeypatch, kernels):
    monkeypatch.setenv("JAXFORMER_CACHE", str(tmp_path / "cache"))
    (tmp_path / "text.py").write_text("def f(x):\n    return x + 1\n" * 90)
    run_dir = tmp_path / "run"
    words = ["--data.path", str(tmp_path / "text.py"), "--run-dir", str(run_dir), *TINY]
    words += ["--model.num-kv-heads", "1", "--model.head-width", "4"]
    words += ["--optimizer.kernels", kernels, "--steps", "2"]
    done = run("decoder_stdlib", *words)
    assert done.returncode == 0, done.stderr
    assert "bigram model" in done.stdout
    assert f"jaxformer sample {run_dir}" in done.stdout
    again = run("decoder_stdlib", "--run-dir", str(run_dir), "--resume", "--steps", "3")
    assert again.returncode == 0, again.stderr
    assert "resumed from step 2" in again.stdout
    assert "the rate now decays to its floor at step 3" in again.stdout
    trained = load_run(run_dir)
    assert trained.evaluate()["bits_per_byte"] > 0
    [text] = trained.sample("def ", max_new_tokens=12)
    assert text


def test_base_presets_are_the_published_settings():
    base, big = transformer_base.PRESETS["base"], transformer_base.PRESETS["big"]
    sizes = [(c.model.num_layers, c.model.width, c.model.mlp_width) for c in (base, big)]
    assert sizes == [(6, 512, 2048), (6, 1024, 4096)]
    assert [(c.model.num_heads, c.model.dropout_rate) for c in (base, big)] == [(8, 0.1), (16, 0.3)]
    assert [(c.steps, c.checkpoint.keep) for c in (base, big)] == [(100_000, 5), (300_000, 20)]
    for config in (base, big):
        optimizer = config.optimizer
        assert (optimizer.factor, optimizer.warmup_steps, optimizer.clip_norm) == (1.0, 4000, None)
        assert (optimizer.beta1, optimizer.beta2, optimizer.epsilon) == (0.9, 0.98, 1e-9)
        assert (config.label_smoothing, config.loss) == (0.1, "cross_entropy")
        assert (config.batch_tokens, config.data.vocab_size) == (25_000, 37_000)
        assert config.model.norm_placement == "post"
        assert config.model.share_embeddings


def test_gpt2_has_the_published_settings():
    config = gpt2_124m.PRESETS["gpt2"]
    model, optimizer = config.model, config.optimizer
    assert (model.num_layers, model.num_heads, model.width) == (12, 12, 768)
    assert (model.context_length, model.vocab_size, model.dropout_rate) == (1024, 50_304, 0.0)
    assert config.batch_size * model.context_length == 2**19
    assert (config.steps, optimizer.warmup_steps) == (600_000, 2000)
    assert (optimizer.peak_learning_rate, optimizer.floor_learning_rate) == (6e-4, 6e-5)
    assert (optimizer.beta1, optimizer.beta2) == (0.9, 0.95)
    assert (optimizer.weight_decay, optimizer.clip_norm) == (0.1, 1.0)


def test_gpt2_starts_on_shards_made_by_hand(tmp_path):
    for side, length in (("train", 900), ("val", 300)):
        tokens = np.random.default_rng(0).integers(0, 50_257, length)
        tokens.astype("<u2").tofile(tmp_path / f"{side}.bin")
    run_dir = tmp_path / "run"
    words = ["--data.path", str(tmp_path), "--run-dir", str(run_dir), "--model.num-layers", "2"]
    words += ["--model.width", "16", "--model.mlp-width", "16", "--model.context-length", "32"]
    done = run("gpt2_124m", *words, "--model.num-heads", "2", "--steps", "2", "--batch-size", "64")
    assert done.returncode == 0, done.stderr
    assert "900 + 300 token ids" in done.stdout
    assert "299 tokens" in done.stdout  # of the validation, in slices of two rows
    assert "bits per byte" not in done.stdout
    assert "warning: the validation side has 300 tokens only" in done.stdout
    assert "BPE" not in done.stdout
    again = run("gpt2_124m", "--run-dir", str(run_dir), "--resume", "--steps", "3")
    assert again.returncode == 0, again.stderr
    assert "resumed from step 2" in again.stdout
    trained = load_run(run_dir)
    scored = trained.evaluate()
    assert (scored["tokens"], scored["bits_per_byte"]) == (299, None)
    [text] = trained.sample("464 2068 7586", max_new_tokens=2)
    assert len(text.split()) == 2
    with pytest.raises(UserError, match=r"--data\.tokenizer"):
        trained.sample("The quick brown")


def test_copy_presets_differ_in_the_task_alone():
    copy, reverse = transformer_copy.PRESETS["copy"], transformer_copy.PRESETS["reverse"]
    assert not copy.data.reverse
    data = dataclasses.replace(reverse.data, reverse=False)
    assert dataclasses.replace(reverse, data=data) == copy


@pytest.mark.parametrize(
    ("name", "words", "expected"),
    [
        (
            "transformer_copy",
            "--preset reverse --data.num-pairs 200 --data.num-val-pairs 10",
            "of 10 held-out pairs",
        ),
        pytest.param(
            "transformer_numbers",
            "--data.num-pairs 200 --data.num-val-pairs 10 --data.vocab-size 300 "
            "--data.target-language fr",
            "of 10 held-out pairs",
            marks=pytest.mark.slow,  # the README's commands run it every time
        ),
        (
            "transformer_text",
            "--data.source {source} --data.target {target} --data.vocab-size 300 "
            "--data.val-fraction 0.1",
            "BLEU",
        ),
        (
            "transformer_base",
            "--data.source {source} --data.target {target} --data.vocab-size 300 "
            "--data.val-source {target} --data.val-target {source}",
            "mean of the last 2 checkpoints: BLEU",
        ),
    ],
)
def test_a_transformer_is_trained_and_scored(tmp_path, monkeypatch, name, words, expected):
    monkeypatch.setenv("JAXFORMER_CACHE", str(tmp_path / "cache"))
    source, target = tmp_path / "source.txt", tmp_path / "target.txt"
    source.write_text("".join(f"the number {i}\n" for i in range(60)), encoding="utf-8")
    target.write_text("".join(f"die Zahl {i}\n" for i in range(60)), encoding="utf-8")
    filled = words.format(source=source, target=target).split()
    done = run(name, "--run-dir", str(tmp_path / "run"), *TINY_TRANSFORMER, *filled)
    assert done.returncode == 0, done.stderr
    assert expected in done.stdout
    assert "jaxformer translate" in done.stdout
    again = run(name, "--run-dir", str(tmp_path / "run"), "--resume")
    assert again.returncode == 0, again.stderr
    assert "nothing is left to do" in again.stdout
    assert expected in again.stdout


def test_the_default_recipe_compares_nothing_where_the_tokenizer_loses_text(
    tmp_path, monkeypatch, capsys
):
    text = tmp_path / "text"
    text.write_text("a short text", encoding="utf-8")
    demo = gpt_stdlib.PRESETS["demo"]
    config = dataclasses.replace(demo, data=dataclasses.replace(demo.data, path=text))
    words = ["--run-dir", str(tmp_path / "run"), "--data.path", str(text)]
    for lost, compared in ((0.0, True), (0.5, False)):
        data = SimpleNamespace(lost=lost, num_val_tokens=3, val_bytes=9)
        outcome = loop.Outcome(config, 0, config.steps, Evaluation(2.0, 3), data)
        monkeypatch.setattr(loop, "train", lambda config, options, outcome=outcome: outcome)
        gpt_stdlib.main(words)
        shown = capsys.readouterr().out
        assert "perplexity 7.39" in shown
        assert ("bits per byte" in shown) == ("xz" in shown) == compared


def test_the_default_recipe_compares_itself_with_bigrams_and_xz(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXFORMER_CACHE", str(tmp_path / "cache"))
    for i in range(40):
        (tmp_path / f"{i}.py").write_text(f"def f{i}(x):\n    return x + {i}\n" * 9)
    words = ["--data.path", str(tmp_path), "--run-dir", str(tmp_path / "run"), *TINY]
    done = run("gpt_stdlib", *words)
    assert done.returncode == 0, done.stderr
    assert "bigram model" in done.stdout
    assert "xz" in done.stdout
    again = run("gpt_stdlib", *words)
    assert again.returncode == 2
    assert again.stderr.count("\n") == 1
    assert "--resume" in again.stderr


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """One line on standard error that names the fault, exit status 2, nothing written."""
    monkeypatch.setenv("JAXFORMER_CACHE", str(tmp_path / "cache"))
    one_device(monkeypatch)
    (tmp_path / "empty.txt").touch()
    (tmp_path / "text.txt").write_text("to be or not to be, that is the question\n" * 40)

    def refuse(name, words, named):
        recipe = importlib.import_module(f"train.{name}")
        filled = words.format(empty=tmp_path / "empty.txt", text=tmp_path / "text.txt").split()
        filled = ["--run-dir", str(tmp_path / "run"), *filled]
        with pytest.raises(SystemExit) as stop:
            run_command(f"jaxformer train {name}", lambda: recipe.main(filled))
        shown = capsys.readouterr()
        assert (stop.value.code, shown.out) == (2, "")
        assert shown.err.count("\n") == 1
        assert named in shown.err
        assert not (tmp_path / "run").exists()

    return refuse


@pytest.mark.parametrize(
    ("name", "words", "named"),
    [
        ("transformer_copy", "--batch-size 9 --accumulation 2", "batch-size 9"),
        ("transformer_copy", "--data.max-length 80", "more than model.context-length"),
        ("transformer_numbers", "--data.target-language xx", "xx"),
        ("transformer_numbers", "--data.target-language en", "are both en"),
        ("transformer_numbers", "--data.vocab-size 99999999999", "data.vocab-size"),
        ("transformer_numbers", "--run-dir=", "--run-dir is empty"),
        ("transformer_text", "", "--data.source"),
        ("transformer_text", "--data.source {text}", "--data.target"),
        ("transformer_text", "--data.source {text} --data.target missing.txt", "missing.txt"),
        ("transformer_base", "--preset small", "--preset small"),
        ("gpt2_124m", "", "--data.path"),
        ("transformer_base", "--data.source {text} --data.target {empty}", "empty.txt"),
    ],
)
def test_bad_input_of_a_transformer_ends_with_one_line(refused, name, words, named):
    refused(name, words, named)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("", "--data.path"),
        ("--data.path missing.txt", "missing.txt"),
        ("--data.path {empty}", "empty"),
        ("--data.path {text} --mesh.data 3", "--mesh.data 3"),
        ("--data.path {text} --batch-size 9 --accumulation 2", "batch-size 9"),
        ("--data.path {text} --model.width 30", "model.width 30"),
        ("--data.path {text} --model.context-length 4000", "too few"),
        ("--data.path {text} --resume", "holds no run"),
        ("--steps abc", "steps"),
        ("--nonsense", "--nonsense"),
    ],
)
def test_bad_input_ends_with_one_line_and_leaves_nothing(refused, words, named):
    refused("gpt_char", words, named)


@pytest.mark.parametrize(
    ("name", "words"), [("gpt_char", "--data.path {text}"), ("transformer_copy", "")]
)
def test_a_mesh_that_cuts_through_heads_is_refused(refused, monkeypatch, name, words):
    monkeypatch.setattr(loop, "make_mesh", make_mesh)  # on all eight devices
    words += " --mesh.data 2 --mesh.tensor 4 --model.width 48 --model.num-heads 6 --batch-size 8"
    refused(name, words, "mesh.tensor 4 does not divide model.num-heads 6")
