"""Whatever words follow a command or a recipe, it does its work or ends with 2 and one line."""

import contextlib
import functools
import importlib
import io
import random
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from jaxformer.cli import main as cli
from jaxformer.cli.arguments import run_command
from jaxformer.config import GPTConfig, LanguageConfig
from jaxformer.data.tokenizer import BPETokenizer, ByteTokenizer, CharTokenizer, Tokenizer
from jaxformer.errors import UserError
from jaxformer.parity import report
from jaxformer.run import load, loop
from jaxformer.run.streaming import encode_prompt
from tests.fuzz import accepted_or_refused, counted, soon
from tests.run.tiny import TEXT
from tests.runs import save_run
from tests.states import snapshot

RECIPES = sorted(path.stem for path in Path("train").glob("[a-z]*.py"))
VALUES = (
    *("", "-1", "0", "1", "2", "64", "1e-3", "1e400", "nan", "inf", "9" * 30, "9" * 5000, "0x10"),
    *("true", "None", "cpu", "all", "x", "é", "世界", "\udcff", "\n", "\0", "a\tb", "--", "-", "="),
    *("│ ──", "%s%n", "{}", "../..", "/dev/null", "/nonexistent/x", "*", "~", " ", "a" * 100_000),
)
PRINTING = {"--help", "-h", "--help-all", "--print-config"}
"""Flags after which something is printed, and no more is done."""


def words_of(program: Callable[[list[str]], object], capsys: pytest.CaptureFixture) -> list[str]:
    """Every flag that `--help` shows."""
    with contextlib.suppress(SystemExit):
        program(["--help-all"])
    shown = capsys.readouterr().out
    return [*sorted(set(re.findall(r"--[a-z][a-z.-]+", shown))), "--help", "-h"]


def draw(flags: list[str], places: list[str], rng: random.Random) -> list[str]:
    """A few words: flags with values or without, misspelt flags, values, places."""
    words = [rng.choice(places)] if rng.random() < 0.7 else []
    for _ in range(rng.randrange(6)):
        flag, value = rng.choice(flags), rng.choice((*VALUES, *places))
        match rng.randrange(6):
            case 0:
                words.append(flag)
            case 1:
                words.append(f"{flag}={value}")
            case 2:
                words += [flag[: rng.randrange(len(flag) + 1)] + rng.choice(("", "x", "-")), value]
            case 3:
                words.append(value)
            case _:
                words += [flag, value]
    return words


def refuse(*_: object, **__: object) -> None:
    raise UserError("the words were taken")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory to be in, with a run and a text; to train, to open and to prove are refused."""
    model = GPTConfig(
        vocab_size=256, context_length=16, width=8, num_heads=2, mlp_width=8, num_layers=1
    )
    save_run(tmp_path / "run", LanguageConfig(model=model), ByteTokenizer())
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loop, "train", refuse)
    monkeypatch.setattr(load, "load_run", refuse)
    monkeypatch.setattr(report, "run", refuse)
    return tmp_path


def check(
    program: Callable[[list[str]], object],
    prog: str,
    places: list[str],
    capsys: pytest.CaptureFixture,
    count: int,
) -> None:
    rng = random.Random(prog)
    flags = words_of(program, capsys)
    before = snapshot(Path.cwd())
    assert isinstance(sys.stderr, io.TextIOWrapper)
    sys.stderr.reconfigure(errors="backslashreplace")  # as Python's own is
    for _ in range(count):
        words, status = draw(flags, places, rng), 0
        with soon():
            try:
                run_command(prog, functools.partial(program, words))
            except SystemExit as stop:
                status = stop.code
        out, err = capsys.readouterr()
        if status == 2:
            assert (out, err.count("\n")) == ("", 1), words
            assert f"{prog}: error: " in err, words
        else:
            assert (status, err) == (0, ""), words
            assert not words or PRINTING & set(words), words
        assert snapshot(Path.cwd()) == before, words


@counted(12, 200)
@pytest.mark.parametrize("name", [*cli.COMMANDS])
def test_any_words_after_a_command(
    here: Path, capsys: pytest.CaptureFixture, name: str, count: int
) -> None:
    program = importlib.import_module(f"jaxformer.cli.{cli.MODULES.get(name, name)}").main
    places = ["nowhere", "text.txt", ".", *(["run"] if name not in ("plot", "metrics") else [])]
    check(program, f"jaxformer {name}", places, capsys, count)


@counted(12, 200)
@pytest.mark.parametrize("name", RECIPES)
def test_any_words_after_a_recipe(
    here: Path, capsys: pytest.CaptureFixture, name: str, count: int
) -> None:
    recipe = importlib.import_module(f"train.{name}")
    places = ["run", "nowhere", "text.txt", "."]
    check(recipe.main, f"jaxformer train {name}", places, capsys, count)


def prompts(rng: random.Random) -> str:
    """Text of any kind: empty, huge, of any script, of what is no text at all."""
    length, times = rng.choice(((0, 1), (1, 1), (3, 1), (20, 1), (20, 1), (20, 5000)))
    ranges = ((0, 128), (0, 0x250), (0x4E00, 0x9FFF), (0x1F300, 0x1F700), (0xD800, 0xE000))
    low, high = rng.choice((*ranges, (0, 0x110000)))
    return "".join(chr(rng.randrange(low, high)) for _ in range(length)) * times


@counted(60, 1000)
@pytest.mark.parametrize(
    "tokenizer",
    [
        ByteTokenizer(),
        CharTokenizer("\n abcé世"),
        BPETokenizer.train([TEXT[:3000]], 300),
        BPETokenizer.train_on_sentences(["ab ab", "ba"], 260),
    ],
    ids=["bytes", "characters", "bpe", "sentences"],
)
def test_any_prompt_has_tokens_or_is_refused(tokenizer: Tokenizer, count: int) -> None:
    rng = random.Random(10)
    for _ in range(count):
        prompt = prompts(rng)
        accepted_or_refused(lambda: encode_prompt(tokenizer, prompt))  # noqa: B023


@counted(20, 300)
def test_any_prompt_is_continued_or_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture, count: int
) -> None:
    model = GPTConfig(
        vocab_size=256, context_length=16, width=8, num_heads=2, mlp_width=8, num_layers=1
    )
    run = save_run(tmp_path / "run", LanguageConfig(model=model), ByteTokenizer())
    rng = random.Random(11)
    for _ in range(count):
        words = ["sample", str(run), f"--prompt={prompts(rng)}", "--max-new-tokens", "2"]
        status = 0
        with soon():
            try:
                cli.main(words)
            except SystemExit as stop:
                status = stop.code
        out, err = capsys.readouterr()
        assert (status, out == "", err.count("\n")) in ((0, False, 0), (2, True, 1)), words
