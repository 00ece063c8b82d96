"""`jaxformer metrics RUN [RUN ...]`: figures worked out by hand, runs of every state."""

import dataclasses
import json
import math
import re
import subprocess
import sys

import pytest

from jaxformer.cli.main import main
from jaxformer.config import CopyTranslationConfig, GPTConfig, LanguageConfig, TransformerConfig
from jaxformer.monitor.metrics import MetricsWriter
from jaxformer.monitor.run_metrics import differing_settings
from jaxformer.tasks.config_io import save_config

SIZES = {"context_length": 7, "width": 6, "num_heads": 2, "mlp_width": 5, "num_layers": 1}
CONFIG = LanguageConfig(model=GPTConfig(vocab_size=11, **SIZES), steps=2000)


def write_run(path, rows=(), config=CONFIG):
    path.mkdir(parents=True)
    if config is not None:
        save_config(config, path / "config.json")
    if rows is not None:
        with MetricsWriter(path / "metrics.jsonl") as writer:
            for step, split, values in rows:
                writer.write(step, split, **values)
    return path


MEASURED = [
    (1, "train", {"loss": 5.0, "memory_bytes": 1000}),
    (1, "val", {"loss": math.nan}),
    (2, "train", {"loss": 4.0, "memory_bytes": 3 << 20, "step_seconds": 2.0}),
    (2, "val", {"loss": 4.5}),
    (3, "train", {"loss": 3.0, "step_seconds": 3.0, "tokens_per_second": 999_960.0}),
    (4, "train", {"loss": math.inf, "step_seconds": 4.0, "tokens_per_second": 1_000.0}),
    (4, "val", {"loss": math.nan}),
    (5, "train", {"loss": 2.0, "step_seconds": 4.0, "tokens_per_second": 2e6}),
    (5, "val", {"loss": 4.75}),
]


def printed(capsys, *words) -> list[str]:
    main(["metrics", *map(str, words)])
    out, err = capsys.readouterr()
    assert err == ""
    return out.splitlines()


def refusal(capsys, *words) -> str:
    with pytest.raises(SystemExit) as stop:
        main(["metrics", *map(str, words)])
    out, err = capsys.readouterr()
    assert (stop.value.code, out, err.count("\n")) == (2, "", 1)
    return err.removeprefix("jaxformer metrics: error: ").strip()


def test_the_figures_are_those_of_the_metrics(tmp_path, capsys):
    file = tmp_path / "figures.json"
    lines = printed(capsys, write_run(tmp_path / "run", MEASURED), "--json", file)
    assert [line.split("  ")[-1].strip() for line in lines] == [
        "run",
        "5 of 2,000",
        "2.0000",
        "4.7500 at step 5",
        "4.5000 at step 2",
        "1.0 M",  # the median of 999,960, 1,000 and 2,000,000
        "3.00 MiB",
        "0:16",  # 2 + 3 + 4 + 4 and their median, 3.5, for the first step
    ]
    [run] = json.loads(file.read_text())["runs"]
    assert run == {
        "run": str(tmp_path / "run"),
        "name": "run",
        "steps": 5,
        "planned": 2000,
        "training_loss": 2.0,
        "not_finite_from": None,
        "validation_loss": 4.75,
        "validation_step": 5,
        "best_validation_loss": 4.5,
        "best_validation_step": 2,
        "tokens_per_second": 999_960.0,
        "peak_memory_bytes": 3 << 20,
        "seconds": 16.5,
    }


@pytest.mark.parametrize(
    ("losses", "shown"),
    [
        ([5.0, 4.0, math.nan, 3.0, math.inf, math.nan], "3.0000, not finite from step 5"),
        ([math.nan, math.nan], "not finite from step 1"),
        ([math.nan, 2.0], "2.0000"),
    ],
)
def test_a_training_that_ends_without_finite_losses_says_from_which_step(
    losses, shown, tmp_path, capsys
):
    rows = [(step, "train", {"loss": loss}) for step, loss in enumerate(losses, 1)]
    lines = printed(capsys, write_run(tmp_path / "run", rows))
    assert lines[2].split("  ")[-1] == shown


@pytest.mark.parametrize("rows", [None, []])
def test_a_run_that_has_only_begun_has_no_metrics_yet(rows, tmp_path, capsys):
    lines = printed(capsys, write_run(tmp_path / "run", rows))
    assert lines[1].endswith("0 of 2,000")
    assert all(line.endswith("  -") for line in lines[2:])
    assert len(lines) == 8


def test_runs_are_side_by_side_with_the_settings_that_differ(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    wide = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, width=12), seed=3)
    runs = (write_run(tmp_path / "a" / "run", MEASURED), write_run(tmp_path / "b", (), wide))
    file = tmp_path / "figures.json"
    lines = printed(capsys, *runs, "--json", file)
    cells = [line.split() for line in lines]
    assert cells[0] == ["run", "run", "b"]
    assert cells[-2:] == [["--seed", "0", "3"], ["--model.width", "6", "12"]]
    assert json.loads(file.read_text())["differing"] == {"--seed": [0, 3], "--model.width": [6, 12]}


def test_runs_that_do_not_fit_the_width_follow_one_another(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    runs = [write_run(tmp_path / name, MEASURED) for name in ("a", "b", "c")]
    lines = printed(capsys, *runs)
    assert max(map(len, lines)) <= 60
    assert [line.split()[-1] for line in lines if line.startswith("run")] == ["a", "b", "c"]
    assert sum("4.5000 at step 2" in line for line in lines) == 3


def test_settings_of_another_kind_of_run_and_of_one_without_any():
    model = TransformerConfig(vocab_size=11, **SIZES)
    copy = CopyTranslationConfig(model=model, steps=2000, seed=5)
    found = differing_settings([CONFIG, copy, None])
    assert found["kind"] == ["gpt", "transformer_copy", None]
    assert found["--seed"] == [0, 5, None]
    assert "--steps" not in found
    assert differing_settings([CONFIG, None, CONFIG]) == {}


def test_names_are_as_long_as_tells_them_apart(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    places = ("x/base", "y/base", "y/z/base", "other")
    runs = [write_run(tmp_path / place, MEASURED) for place in places]
    assert printed(capsys, *runs)[0].split()[1:] == ["x/base", "y/base", "z/base", "other"]


def test_columns_of_names_in_wide_characters_stand_below_each_other(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    lines = printed(capsys, *(write_run(tmp_path / name, MEASURED) for name in ("中文" * 10, "b")))
    shown = [re.sub("[中文]", "xx", line) for line in lines]
    starts = [len(line) - len(line.split("  ")[-1].lstrip()) for line in shown]
    assert len(set(starts)) == 1


def test_what_is_no_run_is_refused_in_one_line(tmp_path, capsys):
    run, empty = write_run(tmp_path / "run", MEASURED), tmp_path / "empty"
    empty.mkdir()
    assert refusal(capsys, run, empty).startswith(f"{empty} is not a run")
    assert refusal(capsys, tmp_path / "absent").startswith(f"{tmp_path}/absent ")
    assert refusal(capsys, run, tmp_path / "empty" / ".." / "run").endswith("name each run once")
    assert "no run" in refusal(capsys)
    assert "--json" in refusal(capsys, run, "--json", tmp_path / "none" / "x.json")
    assert "--json" in refusal(capsys, run, "--json", empty)
    (run / "metrics.jsonl").write_text("nonsense\n")
    file = tmp_path / "kept.json"
    file.write_text("before")
    assert "metrics.jsonl line 1 " in refusal(capsys, run, "--json", file)
    assert file.read_text() == "before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "kept.json", "run"]


def test_it_needs_neither_jax_nor_matplotlib(tmp_path):
    run = write_run(tmp_path / "run", MEASURED)
    code = (
        f"import sys; from jaxformer.cli.metrics import main; main([{str(run)!r}]); "
        "print([name for name in ('jax', 'matplotlib', 'grain') if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == "[]"
