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

from jaxformer.cli.arguments import RunPath, parse, run_command
from jaxformer.errors import UserError


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
    assert head in ("jaxformer sample", "p")
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
