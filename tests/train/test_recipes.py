"""Recipes as a user runs them: presets as published, refusals in one line, help at once."""

import os
import re
import subprocess
import sys

import pytest

from train import gpt_char, gpt_stdlib

RECIPES = {"gpt_char": gpt_char, "gpt_stdlib": gpt_stdlib}
TINY = [
    *("--model.width", "8", "--model.num-heads", "2", "--model.mlp-width", "8"),
    *("--model.num-layers", "1", "--model.context-length", "8", "--batch-size", "8"),
    *("--steps", "3", "--data.vocab-size", "300"),
]
FLAGS = {
    *("--preset", "--run-dir", "--steps", "--stop-after", "--batch-size", "--seed", "--resume"),
    *("--checkpoint.every", "--mesh.data", "--mesh.fsdp", "--mesh.tensor", "--data.path"),
}


def run(module: str, *words: str) -> subprocess.CompletedProcess:
    one_device = {**os.environ, "XLA_FLAGS": ""}
    command = [sys.executable, "-m", f"train.{module}", *words]
    return subprocess.run(command, capture_output=True, text=True, env=one_device)


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
        # The one departure, which the recipe owns up to: GPT-2's 0.02 scaled to the width.
        assert config.model.init_std == pytest.approx(
            0.02 * (768 / config.model.width) ** 0.5, abs=3e-3
        )
    assert "One setting is not the published one" in gpt_char.__doc__


@pytest.mark.parametrize("name", RECIPES)
def test_help_shows_the_command_and_loads_nothing_heavy(name):
    script = (
        "import sys\n"
        f"from train import {name}\n"
        "try:\n"
        f"    {name}.main(['--help'])\n"
        "finally:\n"
        "    heavy = {'jax', 'flax', 'torch', 'matplotlib', 'orbax', 'grain', 'numpy'}\n"
        "    assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    assert f"python -m train.{name}" in shown.stdout
    assert set(re.findall(r"--[a-z.-]+", shown.stdout)) >= FLAGS


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
def test_bad_input_ends_with_one_line_and_leaves_nothing(tmp_path, monkeypatch, words, named):
    monkeypatch.setenv("JAXFORMER_CACHE", str(tmp_path / "cache"))
    (tmp_path / "empty.txt").touch()
    (tmp_path / "text.txt").write_text("to be or not to be, that is the question\n" * 40)
    filled = words.format(empty=tmp_path / "empty.txt", text=tmp_path / "text.txt").split()
    done = run("gpt_char", "--run-dir", str(tmp_path / "run"), *filled)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert named in done.stderr
    assert not (tmp_path / "run").exists()
