"""The command `jaxformer` as a whole: which command runs, its output, its exit status."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxformer.cli.main
from jaxformer.cli.main import COMMANDS, STATUSES, main

HEAVY = ("jax", "flax", "optax", "orbax", "grain", "torch", "transformers", "matplotlib", "numpy")


def status_of(*argv: str) -> int:
    try:
        main(argv)
    except SystemExit as stop:
        return stop.code
    return 0


def python(program: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        timeout=600,
    )


def test_help_names_every_command(capsys):
    assert status_of("--help") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert all(f" {name} {summary}" in shown for name, summary in COMMANDS.items())


@pytest.mark.parametrize("words", [(), ("train",), ("plan",)])
def test_alone_a_command_that_needs_more_words_prints_its_usage(words, capsys):
    assert status_of(*words) == 0
    alone = capsys.readouterr()
    assert status_of(*words, "--help") == 0
    assert alone == capsys.readouterr()
    assert alone.out.startswith(" ".join(("usage: jaxformer", *words)))
    assert alone.err == ""


def test_the_statuses_are_those_of_the_readme(capsys):
    assert status_of("--help") == 0
    shown = capsys.readouterr().out
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    table = readme.partition("### Exit statuses")[2].replace("`", "")
    rows = dict(re.findall(r"^\| (\d+|128\+N) \| (.*) \|$", table, flags=re.MULTILINE))
    assert rows == {n: text.replace("parity", "jaxformer parity") for n, text in STATUSES.items()}
    assert all(f"\n  {number} " in shown for number in STATUSES)


def test_version_is_that_of_the_package(capsys):
    assert status_of("--version") == 0
    assert capsys.readouterr().out == "jaxformer 0.1.0\n"


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (
            ("plto",),
            r"'plto'.* plot; .*train, parity, .*plot, metrics\b",
        ),
        (("zzz",), r"'zzz'; .*train, parity, .*plot, metrics\b"),
        (("--flag",), r"'--flag'; .*train, parity, .*plot, metrics\b"),
    ],
)
def test_unknown_commands_end_with_one_line(argv, line, capsys):
    assert status_of(*argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.match(f"jaxformer: error: .*{line}", err)
    assert err.count("\n") == 1


@pytest.mark.parametrize("name", COMMANDS)
def test_help_imports_nothing_heavy(name):
    program = (
        "import sys; from jaxformer.cli.main import main\n"
        "status = 0\n"
        f"try: main([{name!r}, '--help'])\n"
        "except SystemExit as stop: status = stop.code\n"
        f"print(status, [m for m in {HEAVY} if m in sys.modules])"
    )
    ran = python(program)
    assert ran.stderr == ""
    assert f"usage: jaxformer {name}" in ran.stdout
    assert ran.stdout.splitlines()[-1] == "0 []"


def test_a_command_receives_the_arguments_after_its_name(monkeypatch):
    class Module:
        words = None

        def main(self, argv):
            self.words = argv
            return 3

    module = Module()
    imported = []
    monkeypatch.setattr(
        jaxformer.cli.main.importlib, "import_module", lambda name: imported.append(name) or module
    )
    assert status_of("sample", "runs/a", "--seed", "1") == 3
    assert imported == ["jaxformer.cli.sample"]
    assert module.words == ["runs/a", "--seed", "1"]


def test_python_dash_m_is_the_same_command():
    ran = subprocess.run(
        [sys.executable, "-m", "jaxformer", "plto"], capture_output=True, text=True, timeout=600
    )
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.startswith("jaxformer: error: ")
    assert "'plto'" in ran.stderr


def test_an_ascii_terminal_shows_any_text():
    program = (
        "from jaxformer.cli.arguments import run_command\n"
        "run_command('p', lambda: print('na\\u00efve \\u4e16'))"
    )
    ran = python(program, PYTHONIOENCODING="ascii")
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "na\\xefve \\u4e16\n", "")


@pytest.mark.parametrize("argv", [["--help"], ["plot", "--help"]])
def test_a_closed_pipe_is_not_an_error(argv):
    reader, writer = os.pipe()
    os.close(reader)
    ran = subprocess.run(
        [sys.executable, "-m", "jaxformer", *argv],
        stdout=writer,
        stderr=subprocess.PIPE,
        env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
        timeout=600,
    )
    os.close(writer)
    assert (ran.returncode, ran.stderr) == (141, b"")


words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
flags = st.sampled_from(["-h", "--help", "--", "--run", "-", "---", "--run=x", "=", "\n", "│ ──"])


@given(first=words | flags | st.just("plot"), rest=st.lists(words | flags, max_size=4))
@settings(deadline=None, max_examples=150)
def test_no_arguments_end_in_a_traceback(first, rest):
    """`plot` represents the commands: it reads a directory or refuses its arguments."""
    if first not in COMMANDS or first == "plot":
        assert status_of(first, *rest) in (0, 2)
