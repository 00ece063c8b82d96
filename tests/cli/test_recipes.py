"""Recipes: found by name or path whatever lies around, their flags become a configuration."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxformer.cli.main import main
from jaxformer.cli.recipes import HOME, RECIPES, load_recipe, parse_recipe
from jaxformer.config import GPT_PRESETS, LanguageConfig, RunOptions
from jaxformer.tasks.config_io import save_config

ROOT = Path(__file__).parents[2]
PROG = "jaxformer train my_gpt.py"
PRESETS = {
    "cpu": LanguageConfig(model=GPT_PRESETS["toy"], steps=20),
    "gpu": LanguageConfig(model=GPT_PRESETS["gpt2"], steps=77, seed=5),
}


def recipe(*argv: str) -> tuple[LanguageConfig, RunOptions]:
    return parse_recipe(PRESETS, argv, "my_gpt.py", "Train a GPT.")


def refusal(capsys, function) -> str:
    """The one line of a refused command line, after the program's name."""
    with pytest.raises(SystemExit) as stop:
        function()
    out, err = capsys.readouterr()
    assert (stop.value.code, out, err.count("\n")) == (2, "", 1)
    head, _, line = err.strip().partition(": error: ")
    assert head in (PROG, "jaxformer train")
    return line


def test_steps_to_trace_are_first_and_last_or_none(capsys):
    assert list(recipe("--profile", "5:7")[1].profiled_steps) == [5, 6, 7]
    assert recipe("--profile", "5:7", "--profile", "None")[1].profile is None  # as a restart says
    assert "profile '7'" in refusal(capsys, lambda: recipe("--profile", "7"))


def test_a_recipe_without_flags_is_the_default_preset():
    assert recipe() == (PRESETS["cpu"], RunOptions(run_dir=Path("runs/my_gpt")))


@pytest.mark.parametrize(
    "words",
    [["--preset", "gpu"], ["--preset=cpu", "--preset=gpu"], ["--preset", "cpu", "--preset", "gpu"]],
)
def test_a_preset_gives_the_values_that_no_flag_sets(words):
    config, _ = recipe("--steps", "9", *words)
    assert config == dataclasses.replace(PRESETS["gpu"], steps=9)


def test_every_common_flag_of_the_recipes():
    words = (
        "--preset gpu --run-dir r/x --steps 9 --stop-after 4 --batch-size 8 --seed 3 --resume "
        "--checkpoint.every 2 --mesh.data 2 --mesh.fsdp 3 --mesh.tensor 4 --data.path f.txt "
        "--model.width 24 --optimizer.beta2 0.5"
    )
    config, run = recipe(*words.split())
    assert run == RunOptions(run_dir=Path("r/x"), stop_after=4, resume=True)
    assert (config.steps, config.batch_size, config.seed) == (9, 8, 3)
    assert config.checkpoint.every == 2
    assert dataclasses.astuple(config.mesh) == (2, 3, 4)
    assert config.data.path == Path("f.txt")
    assert (config.model.width, config.optimizer.beta2) == (24, 0.5)
    assert config.model.num_layers == PRESETS["gpu"].model.num_layers


def test_recipe_help_lists_presets_and_shows_their_defaults(capsys):
    with pytest.raises(SystemExit) as stop:
        recipe("--help", "--preset", "gpu")
    shown = capsys.readouterr().out
    assert stop.value.code == 0
    assert "--preset {cpu,gpu}" in shown
    assert "(default: gpu)" in shown
    assert "(default: 77)" in shown


@pytest.mark.parametrize(
    "words",
    [
        "--preset tpu --help",
        "--help --preset=tpu",
        "--config missing.json --help",
        "--config nonsense.json -h",
        "--config . --help-all",
        "--resume --run-dir . --help",
    ],
)
def test_help_comes_whatever_else_is_wrong(words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("nonsense.json", "config.json"):
        (tmp_path / name).write_text("{")
    with pytest.raises(SystemExit) as stop:
        recipe(*words.split())
    out, err = capsys.readouterr()
    assert (stop.value.code, err) == (0, "")
    assert "--preset {cpu,gpu}" in out
    assert "(default: cpu)" in out


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("--preset tpu", r"--preset tpu .*cpu, gpu"),
        ("--preset", rf"--preset\b.*{PROG} --help"),
        ("--steps 0", r"\bsteps 0 .*\[1, "),
        ("--stop-after 0", r"stop-after 0 .*\[1, "),
        ("--model.num-heads 5", r"model\.width 32 .*model\.num-heads 5\b"),
        ("--checkpoint.every=-1", r"checkpoint\.every -1 .*\[1, "),
        ("--optimizer.beta1 nan", r"optimizer\.beta1 nan .*choose"),
        ("--stepz 3", r"--stepz, 3;.*--steps\b"),
        ("--mesh 3", r"--mesh, 3;.*--mesh\.data\b"),
    ],
)
def test_recipe_refusals_are_one_line(words, line, capsys):
    assert re.search(line, refusal(capsys, lambda: recipe(*words.split())))


def test_a_newline_in_an_argument_does_not_make_two_lines(capsys):
    assert refusal(capsys, lambda: recipe("--preset", "a\nb")).startswith("--preset a b ")
    assert "--steps" in refusal(capsys, lambda: recipe("--steps", "a\n\nb"))


def settings_file(path: Path, **values) -> str:
    path.write_text(json.dumps(values), encoding="utf-8")
    return str(path)


def test_a_file_stands_between_the_preset_and_the_flags(tmp_path):
    file = settings_file(tmp_path / "a.json", steps=9, seed=6, model={"width": 64, "num_heads": 4})
    config, _ = recipe("--preset", "gpu", "--config", file, "--seed", "7")
    model = dataclasses.replace(PRESETS["gpu"].model, width=64, num_heads=4)
    assert config == dataclasses.replace(PRESETS["gpu"], steps=9, seed=7, model=model)
    other = settings_file(tmp_path / "b.json", steps=8)
    assert recipe("--config", file, f"--config={other}")[0].steps == 8, "the last one counts"


@pytest.mark.parametrize("name", RECIPES)
def test_what_is_printed_is_read_again(name, tmp_path, capsys):
    """--print-config, then --config: the same configuration, and nothing has begun."""
    module = load_recipe(name)
    for preset, made in module.PRESETS.items():
        words = ["--preset", preset, "--steps", "41", "--model.dropout-rate", "0.3"]
        with pytest.raises(SystemExit) as stop:
            module.main([*words, "--print-config", "--restarts", "2"])
        out, err = capsys.readouterr()
        assert (stop.value.code, err) == (0, "")
        assert (json.loads(out)["steps"], json.loads(out)["kind"]) == (41, made.kind)
        (tmp_path / "settings.json").write_text(out)
        with pytest.raises(SystemExit):
            module.main(["--config", str(tmp_path / "settings.json"), "--print-config"])
        assert capsys.readouterr().out == out
    assert list(tmp_path.iterdir()) == [tmp_path / "settings.json"]


def test_a_run_that_is_resumed_is_the_preset_of_a_file(tmp_path):
    """Its config.json, then --config, then flags; a --preset takes the place of config.json."""
    made = dataclasses.replace(PRESETS["cpu"], steps=33, eval_every=5)
    save_config(made, tmp_path / "config.json")
    words = ["--resume", "--run-dir", str(tmp_path)]
    file = settings_file(tmp_path / "more.json", eval_every=7)
    assert recipe(*words)[0] == made
    assert recipe(*words, "--config", file)[0] == dataclasses.replace(made, eval_every=7)
    assert recipe(*words, "--config", file, "--eval-every", "9")[0].eval_every == 9
    chosen = dataclasses.replace(PRESETS["gpu"], eval_every=7)
    assert recipe(*words, "--preset", "gpu", "--config", file)[0] == chosen


@pytest.mark.parametrize("words", [["--config", "a.json"], ["--config=a.json", "--print-config"]])
def test_a_file_that_cannot_be_read_is_refused_in_one_line(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert "--config a.json is missing" in refusal(capsys, lambda: recipe(*words))
    settings_file(tmp_path / "a.json", stepz=3)
    assert re.search(r"--config a\.json: stepz .*steps", refusal(capsys, lambda: recipe(*words)))
    settings_file(tmp_path / "a.json", steps="3")
    assert '--config a.json: steps is "3"' in refusal(capsys, lambda: recipe(*words))


FLAGS = (
    "--preset --preset=gpu --run-dir --steps --mesh.data=2 --resume --no-resume --help --seed "
    "--model.width --data.path --stop_after -- -x --mesh.foo"
)
flags = st.sampled_from(FLAGS.split())
values = st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.sampled_from(
    ["0", "3", "-1", "1e9", "nan", "None", "gpu", "9" * 5000]
)


@given(st.lists(flags | values, max_size=6))
@settings(deadline=None, max_examples=60)
def test_no_arguments_of_a_recipe_end_in_a_traceback(words):
    status = 0
    try:
        recipe(*words)
    except SystemExit as stop:
        status = stop.code
    assert status in (0, 2)


@pytest.mark.parametrize(
    ("words", "flag"),
    [
        (["--run-dir", ""], "--run-dir"),
        (["--run-dir="], "--run-dir"),
        (["--config="], "--config"),
        (["--data.path", ""], "--data.path"),
        (["--data.path="], "--data.path"),
    ],
)
def test_an_empty_path_is_not_the_working_directory(words, flag, capsys):
    assert f"{flag} is empty" in refusal(capsys, lambda: recipe(*words))


OWN = """
from jaxformer.cli.recipes import parse_recipe, run_recipe
from jaxformer.config import GPT_PRESETS, LanguageConfig
from neighbour import STEPS

PRESETS = {"mine": LanguageConfig(model=GPT_PRESETS["toy"], steps=STEPS)}


def main(argv):
    config, options = parse_recipe(PRESETS, argv, __file__, __doc__)
    print(config.steps, options.run_dir)
    return 0


if __name__ == "__main__":
    run_recipe(__file__, main)
"""


@pytest.fixture
def elsewhere(tmp_path):
    """A directory with a recipe, what it imports, and a train.py that is not for us."""
    (tmp_path / "my").mkdir()
    (tmp_path / "my" / "own.py").write_text(OWN)
    (tmp_path / "my" / "neighbour.py").write_text("STEPS = 41")
    (tmp_path / "train.py").write_text("raise SystemExit('this is not a recipe')")
    return tmp_path


def python(directory: Path, path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(path)},
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.mark.parametrize("words", ["-m jaxformer train my/own.py", "my/own.py"])
def test_a_file_of_ones_own_is_a_recipe(elsewhere, words):
    ran = python(elsewhere, ROOT, *words.split(), "--seed", "3")
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "41 runs/own\n", "")
    ran = python(elsewhere, ROOT, *words.split(), "--steps", "x")
    assert ran.returncode == 2
    assert ran.stderr.startswith("jaxformer train my/own.py: error: --steps: 'x' ")
    assert ran.stderr.endswith("; see jaxformer train my/own.py --help\n")


@pytest.mark.parametrize("installed", [False, True])
def test_a_users_train_py_is_not_in_the_way(elsewhere, installed):
    """Installed, the recipes are the package jaxformer.recipes: see setup.py."""
    path = ROOT
    if installed:
        path = elsewhere / "site-packages"
        (path / "jaxformer").mkdir(parents=True)
        for part in (ROOT / "jaxformer").iterdir():
            (path / "jaxformer" / part.name).symlink_to(part)
        (path / "jaxformer" / "recipes").symlink_to(HOME)
    for words in (["train", "gpt_char", "--help"], ["plan", "gpt_char", "--help"]):
        ran = python(elsewhere, path, "-m", "jaxformer", *words)
        assert (ran.returncode, ran.stderr) == (0, "")
        assert f"usage: jaxformer {words[0]} gpt_char" in ran.stdout


def test_the_command_lists_the_recipes(capsys):
    main(["train", "--help"])
    shown = capsys.readouterr().out
    assert "usage: jaxformer train RECIPE" in shown
    assert "gpt_stdlib" in RECIPES
    for name in RECIPES:
        assert re.search(rf"^  {name} +[A-Z]", shown, flags=re.MULTILINE)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["gpt_car"], r"recipe gpt_car .*meant gpt_char;"),
        (["train.gpt_char"], r"recipe train.gpt_char .*meant gpt_char;"),
        (["zzz"], r"recipe zzz .*choose one of decoder_stdlib, gpt2_124m"),
        ([""], r"recipe '' is unknown"),
        ([" "], r"recipe ' ' is unknown"),
        (["--steps", "3"], r"no recipe .*choose one of decoder_stdlib, gpt2_124m"),
        (["missing.py"], r"recipe missing\.py is not a file"),
        (["empty.py"], r"empty\.py is no recipe: .*PRESETS"),
        (["headless.py"], r"headless\.py is no recipe: .*main"),
        (["broken.py"], r"broken\.py.*cannot be loaded: SyntaxError"),
        (["number.py"], r"preset a is of type int: "),
        (["nameless.py"], r"PRESETS has the name 3: "),
        (["failing.py"], r"failing\.py, line 2 cannot be loaded: ZeroDivisionError"),
    ],
)
@pytest.mark.parametrize("command", ["train", "plan"])
def test_what_is_no_recipe_is_refused_in_one_line(words, line, command, tmp_path, capsys):
    (tmp_path / "empty.py").touch()
    (tmp_path / "headless.py").write_text("PRESETS = {'a': None}")
    own = "from jaxformer.cli.recipes import parse_recipe\nmain = lambda argv: parse_recipe("
    for name, presets in (("number.py", "{'a': 1}"), ("nameless.py", "{3: None}")):
        (tmp_path / name).write_text(f"PRESETS = {presets}\n{own}PRESETS, argv, __file__, __doc__)")
    (tmp_path / "broken.py").write_text("(")
    (tmp_path / "failing.py").write_text("x = 0\n1 / x")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        patch.setattr(sys, "path", [*sys.path])
        patch.delenv("JAXFORMER_TRACEBACK", raising=False)
        with pytest.raises(SystemExit) as stop:
            main([command, *words])
    out, err = capsys.readouterr()
    assert (stop.value.code, out, err.count("\n")) == (2, "", 1)
    assert re.search(line, err)
