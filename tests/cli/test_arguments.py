"""Command lines become dataclasses, failures one line: for every command and recipe."""

import dataclasses
import errno
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxformer.cli.arguments import RunPath, parse, parse_recipe, run_command
from jaxformer.config import GPT_PRESETS, LanguageConfig, RunOptions
from jaxformer.errors import UserError

PROG = "python -m train.gpt_char"
PRESETS = {
    "cpu": LanguageConfig(model=GPT_PRESETS["toy"], steps=20),
    "gpu": LanguageConfig(model=GPT_PRESETS["gpt2"], steps=77, seed=5),
}


@dataclasses.dataclass(frozen=True)
class Options:
    """An example of a command's options."""

    run: RunPath
    """Directory."""
    num_samples: int = 1
    """How many."""
    kind: Literal["greedy", "beam"] = "greedy"
    """Which."""
    temperature: float = 1.0
    """How random, a number whose help is longer than one line of a narrow terminal."""

    def __post_init__(self) -> None:
        if self.num_samples < 1:
            raise UserError(f"num-samples {self.num_samples} is not positive:\nchoose 1 or more")


def recipe(*argv: str) -> tuple[LanguageConfig, RunOptions]:
    return parse_recipe(PRESETS, "cpu", argv, PROG, "Train a GPT.")


def refusal(capsys, function) -> str:
    """The one line of a refused command line, after the program's name."""
    with pytest.raises(SystemExit) as stop:
        function()
    out, err = capsys.readouterr()
    assert stop.value.code == 2
    assert out == ""
    assert err.count("\n") == 1
    assert err.endswith("\n")
    head, _, line = err.strip().partition(": error: ")
    assert head in (PROG, "jaxformer sample", "p")
    return line


def test_flags_become_fields():
    words = ["runs/a", "--num-samples", "3", "--kind=beam", "--temperature", "-1e-3"]
    assert parse(Options, words, "p", "") == Options(Path("runs/a"), 3, "beam", -1e-3)
    assert parse(Options, ["a", "--num_samples", "3"], "p", "") == Options(Path("a"), 3)


def test_defaults_come_from_the_instance():
    default = Options(Path("b"), num_samples=7)
    assert parse(Options, [], "p", "", default) == default
    assert parse(Options, ["--kind", "beam"], "p", "", default).num_samples == 7


LONG = "x" * 150


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("", r"RUN\b.*jaxformer sample --help"),
        ("a --num-samples x", r"--num-samples\b.*'x'.*jaxformer sample --help"),
        (f"a --num-samples {LONG}", rf"--num-samples\b.*'{LONG}'"),
        ("a --temperature 1e", r"--temperature\b.*'1e'.*jaxformer sample --help"),
        ("a --num-samples", r"--num-samples\b.*jaxformer sample --help"),
        ("a --kind --x", r"--kind needs a value.* --kind=VALUE"),
        ("a --kind x", r"--kind\b.*'x'.*'greedy', 'beam'.*jaxformer sample --help"),
        ("a --num-sample 3", r"--num-sample, 3;.*--num-samples\b"),
        ("a --zzz", r"--zzz\b.*jaxformer sample --help"),
        ("a b", r"\bb;.*jaxformer sample --help"),
        ("a --num-samples 0", r"num-samples 0 .*choose 1 or more"),
    ],
)
@pytest.mark.parametrize("columns", ["40", "200"])
def test_refusals_are_one_line(words, line, columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    refused = refusal(capsys, lambda: parse(Options, words.split(), "jaxformer sample", ""))
    assert re.search(line, refused)
    assert os.environ["COLUMNS"] == columns


def test_help_fits_the_terminal(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    with pytest.raises(SystemExit) as stop:
        parse(Options, ["--help"], "jaxformer sample", "Write text.")
    shown = capsys.readouterr().out
    assert stop.value.code == 0
    assert "usage: jaxformer sample" in shown
    assert "Write text." in shown
    assert "How random" in shown
    assert max(map(len, shown[shown.index("Write text.") :].splitlines())) <= 60


@pytest.mark.parametrize("columns", ["1", "3", "39"])
def test_help_ends_on_the_narrowest_terminal(columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    with pytest.raises(SystemExit) as stop:
        parse(Options, ["--help"], "jaxformer sample", "Write text.")
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert "How random" in shown
    assert max(map(len, shown[shown.index("Write text.") :].splitlines())) <= 40


def test_a_recipe_without_flags_is_the_default_preset():
    assert recipe() == (PRESETS["cpu"], RunOptions(run_dir=Path("runs/gpt_char")))


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
    ("words", "line"),
    [
        ("--preset tpu", r"--preset tpu .*cpu, gpu"),
        ("--preset=tpu --help", r"--preset tpu .*cpu, gpu"),
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


def raising(error: BaseException):
    def function() -> None:
        raise error

    return function


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (UserError("no\ncorpus: name one"), 2, "p: error: no corpus: name one"),
        (
            OSError(errno.ENOSPC, "No space left on device", "a/metrics.jsonl"),
            2,
            "p: error: a/metrics.jsonl: No space left on device; free some space and run it again",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "/x"),
            2,
            "p: error: /x: Permission denied; check its permissions",
        ),
        (OSError("odd"), 2, "p: error: odd; check the path"),
        *(
            (error, 2, "p: error: out of memory: choose a smaller model, context, batch or beam")
            for error in (
                MemoryError(),
                RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes"),
                RuntimeError("INTERNAL: Error dispatching: Out of memory allocating 9 bytes."),
            )
        ),
        (
            TypeError("a\nb"),
            1,
            "p: error: internal error: TypeError: a b "
            "(set JAXFORMER_TRACEBACK=1 for the traceback)",
        ),
    ],
)
def test_every_failure_is_one_line_and_a_status(error, status, line, capsys, monkeypatch):
    monkeypatch.delenv("JAXFORMER_TRACEBACK", raising=False)
    with pytest.raises(SystemExit) as stop:
        run_command("p", raising(error))
    assert stop.value.code == status
    assert capsys.readouterr().err == f"{line}\n"


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        (
            "JAX_NUMPY_RANK_PROMOTION",
            "no",
            ValueError('Invalid value "no" for JAX flag jax_numpy_rank_promotion'),
        ),
        ("JAX_DEFAULT_DEVICE", "no", ValueError("jax.default_device must be a Device, got: 'no'")),
        ("JAX_DEBUG_NANS", "1", FloatingPointError("invalid value (nan) encountered in scan")),
    ],
)
def test_a_failure_by_a_setting_of_jax_names_it(name, value, error, capsys, monkeypatch):
    monkeypatch.delenv("JAXFORMER_TRACEBACK", raising=False)
    monkeypatch.setenv(name, value)
    assert f"unset or change {name}={value}" in refusal(
        capsys, lambda: run_command("p", raising(error))
    )


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
def test_closed_streams_take_nothing_from_a_file(closed, tmp_path):
    program = (
        "import os, sys\n"
        "from jaxformer.cli.arguments import run_command\n"
        "def work():\n"
        "    with open('file', 'w') as file:\n"
        "        assert file.fileno() > 2\n"
        "        print('said', flush=True)\n"
        "        print('complained', file=sys.stderr, flush=True)\n"
        "        os.write(2, b'by a library')\n"
        "        file.write('written')\n"
        "run_command('p', work)"
    )
    shell = 'exec "$@" ' + " ".join(f"{number}>&-" for number in closed)
    words = ["sh", "-c", shell, "sh", sys.executable, "-c", program]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ("" if 1 in closed else "said\n")
    assert done.stderr == ("" if 2 in closed else "complained\nby a library")
    assert (tmp_path / "file").read_text() == "written"


def test_defects_can_be_debugged(monkeypatch):
    monkeypatch.setenv("JAXFORMER_TRACEBACK", "1")
    with pytest.raises(TypeError, match="wrong"):
        run_command("p", raising(TypeError("wrong")))


def test_the_status_of_the_function_is_that_of_the_program():
    run_command("p", lambda: None)
    run_command("p", lambda: 0)
    with pytest.raises(SystemExit) as stop:
        run_command("p", lambda: 1)
    assert stop.value.code == 1


@pytest.mark.parametrize(
    ("words", "flag"),
    [
        (["--run-dir", ""], "--run-dir"),
        (["--run-dir="], "--run-dir"),
        (["--data.path", ""], "--data.path"),
        (["--data.path="], "--data.path"),
    ],
)
def test_an_empty_path_is_not_the_working_directory(words, flag, capsys):
    presets = {"tiny": LanguageConfig(model=GPT_PRESETS["toy"])}
    with pytest.raises(SystemExit) as stop:
        parse_recipe(presets, "tiny", words, "python -m train.tiny", "")
    assert stop.value.code == 2
    complaint = capsys.readouterr().err
    assert f"{flag} is empty" in complaint
    assert complaint.count("\n") == 1
