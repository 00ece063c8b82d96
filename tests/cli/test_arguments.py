"""Words to dataclasses, failures to one line: of every command and recipe."""

import dataclasses
import errno
import os
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
    """How wild, a number that takes more than one line of a narrow terminal to explain."""

    def __post_init__(self) -> None:
        if self.num_samples < 1:
            raise UserError(f"num-samples {self.num_samples} is not positive:\nchoose 1 or more")


def recipe(*argv: str) -> tuple[LanguageConfig, RunOptions]:
    return parse_recipe(PRESETS, "cpu", argv, PROG, "Train a GPT.")


def refusal(capsys, function) -> str:
    """The one line that a refused command line ends with, after the program's name."""
    with pytest.raises(SystemExit) as stop:
        function()
    out, err = capsys.readouterr()
    assert stop.value.code == 2
    assert out == ""
    assert err.count("\n") == 1
    assert err.endswith("\n")
    head, _, line = err.strip().partition(": error: ")
    assert head in (PROG, "jaxformer sample")
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
        ("", "missing RUN; see jaxformer sample --help"),
        (
            "a --num-samples x",
            "--num-samples: 'x' is not a whole number; see jaxformer sample --help",
        ),
        (f"a --num-samples {LONG}", f"--num-samples: '{LONG}' is not a whole number"),
        ("a --temperature 1e", "--temperature: '1e' is not a number; see jaxformer sample --help"),
        ("a --num-samples", "--num-samples needs a value; see jaxformer sample --help"),
        ("a --kind x", "--kind: 'x' is none of 'greedy', 'beam'; see jaxformer sample --help"),
        ("a --num-sample 3", "unknown argument --num-sample, 3; perhaps you meant --num-samples"),
        ("a --zzz", "unknown argument --zzz; see jaxformer sample --help"),
        ("a b", "unknown argument b; see jaxformer sample --help"),
        ("a --num-samples 0", "num-samples 0 is not positive: choose 1 or more"),
    ],
)
@pytest.mark.parametrize("columns", ["40", "200"])
def test_refusals_are_one_line(words, line, columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    refused = refusal(capsys, lambda: parse(Options, words.split(), "jaxformer sample", ""))
    assert refused.startswith(line)
    assert os.environ["COLUMNS"] == columns


def test_help_fits_the_terminal(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    with pytest.raises(SystemExit) as stop:
        parse(Options, ["--help"], "jaxformer sample", "Write text.")
    shown = capsys.readouterr().out
    assert stop.value.code == 0
    assert "usage: jaxformer sample" in shown
    assert "Write text." in shown
    assert "How wild" in shown
    assert max(map(len, shown[shown.index("Write text.") :].splitlines())) <= 60


def test_recipe_without_words_is_the_default_preset():
    assert recipe() == (PRESETS["cpu"], RunOptions(run_dir=Path("runs/gpt_char")))


@pytest.mark.parametrize(
    "words",
    [["--preset", "gpu"], ["--preset=cpu", "--preset=gpu"], ["--preset", "cpu", "--preset", "gpu"]],
)
def test_preset_gives_the_values_that_flags_leave_alone(words):
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
        ("--preset tpu", "--preset tpu is unknown; choose one of cpu, gpu"),
        ("--preset=tpu --help", "--preset tpu is unknown; choose one of cpu, gpu"),
        ("--preset", f"--preset needs a value; see {PROG} --help"),
        ("--steps 0", "steps 0 is out of range: choose a number in [1, "),
        ("--stop-after 0", "stop-after 0 is out of range: choose a number in [1, "),
        ("--model.num-heads 5", "model.width 32 is not divisible by model.num-heads 5: choose a"),
        ("--checkpoint.every=-1", "checkpoint.every -1 is out of range: choose a number in [1, "),
        ("--optimizer.beta1 nan", "optimizer.beta1 nan is out of range: choose"),
        ("--stepz 3", "unknown argument --stepz, 3; perhaps you meant --steps"),
        ("--mesh 3", "unknown argument --mesh, 3; perhaps you meant --mesh.data or"),
    ],
)
def test_recipe_refusals_are_one_line(words, line, capsys):
    assert refusal(capsys, lambda: recipe(*words.split())).startswith(line)


def test_a_line_end_in_a_word_does_not_make_two_lines(capsys):
    assert refusal(capsys, lambda: recipe("--preset", "a\nb")).startswith("--preset a b is")
    assert "not a whole number" in refusal(capsys, lambda: recipe("--steps", "a\n\nb"))


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
def test_no_words_of_a_recipe_end_in_a_traceback(words):
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
def test_every_end_is_one_line_and_a_status(error, status, line, capsys, monkeypatch):
    monkeypatch.delenv("JAXFORMER_TRACEBACK", raising=False)
    with pytest.raises(SystemExit) as stop:
        run_command("p", raising(error))
    assert stop.value.code == status
    assert capsys.readouterr().err == f"{line}\n"


def test_defects_can_be_debugged(monkeypatch):
    monkeypatch.setenv("JAXFORMER_TRACEBACK", "1")
    with pytest.raises(TypeError, match="wrong"):
        run_command("p", raising(TypeError("wrong")))


def test_status_of_the_function_is_the_programs():
    run_command("p", lambda: None)
    run_command("p", lambda: 0)
    with pytest.raises(SystemExit) as stop:
        run_command("p", lambda: 1)
    assert stop.value.code == 1
