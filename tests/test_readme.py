"""The README's commands and code run as they stand, on a run small enough to make here."""

import math
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from jaxformer.config import NumbersConfig, NumbersTranslationConfig, TransformerConfig
from jaxformer.data.translation import prepare_pairs
from jaxformer.models.functional import init_params
from jaxformer.models.transformer import Transformer
from jaxformer.run.directory import save_params
from tests.run import forked

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
TEXT = "".join(f"def f{i}(x):\n    return x + {i}\n" for i in range(300))
SIZES = "--model.width 8 --model.num-heads 2 --model.mlp-width 8 --model.num-layers 1 --steps 4 "
TINY = SIZES + "--batch-size 8 --model.context-length 32 --data.vocab-size 300"
TINY_PAIRS = SIZES + "--batch-size 64 --data.num-pairs 300 --data.num-val-pairs 20"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def commands(block: str) -> list[str]:
    return [line.partition(" # ")[0].strip() for line in block.split("\n") if line]


COMMANDS = [commands(block) for block in blocks("sh")]
DEMO = "jaxformer train gpt_stdlib --run-dir runs/demo"
AS_TYPED = (DEMO, "jaxformer evaluate runs/demo", "jaxformer plan")
"""Commands that start Python; the others start from one that has imported it all."""


def small(command: str) -> list[str]:
    """The command with sizes that take seconds; where it runs and what it names stay."""
    words = shlex.split(command)
    if words[:2] == ["jaxformer", "train"] and "--resume" not in words:
        for flag in ("--steps", "--stop-after"):
            if flag in words:
                words[words.index(flag) + 1] = {"--steps": "4", "--stop-after": "2"}[flag]
        of_pairs = words[2].startswith("transformer")
        tiny = shlex.split(TINY_PAIRS if of_pairs else TINY)
        given = {word for word in words if word.startswith("--")}
        pairs = zip(tiny[::2], tiny[1::2], strict=True)
        words += [word for pair in pairs if pair[0] not in given for word in pair]
        if "--data.path" not in words and not of_pairs:
            words += ["--data.path", "my_texts/"]
    return words


def write_texts(directory: Path) -> None:
    (directory / "my_texts").mkdir()
    for i in range(30):
        (directory / "my_texts" / f"{i}.py").write_text(TEXT[i:], encoding="utf-8")
    (directory / "shakespeare.txt").write_text(TEXT, encoding="utf-8")


def run(command: str, directory: Path) -> None:
    echoed, _, command = command.rpartition(" | ")
    words, said = small(command), " ".join(shlex.split(echoed)[1:]) + "\n"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XLA_FLAGS", "")
        patch.setenv("JAXFORMER_CACHE", str(directory / "cache"))
        patch.setenv("PYTHONPATH", str(ROOT))
        if command.startswith(AS_TYPED):
            words = [sys.executable, "-m", *words]
            done = subprocess.run(words, cwd=directory, capture_output=True, text=True, input=said)
        else:
            done = forked.run(words[0], words[1:], directory, said)
    assert done.returncode == 0, f"{command}\n{done.stderr}"
    # On a busy machine a command says how far it is.
    assert re.sub(r"translated \d+ of \d+\n", "", done.stderr) == "", command
    assert done.stdout, command


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The run that `make demo` leaves."""
    directory = tmp_path_factory.mktemp("demo")
    write_texts(directory)
    run(DEMO, directory)
    return directory / "runs" / "demo"


def test_there_are_commands_and_code_to_run():
    words = [command.split()[0] for block in COMMANDS for command in block]
    assert words.count("make") == 2
    assert COMMANDS[0] == ["make demo", "make test"]
    assert words.count("jaxformer") >= 6
    assert len(blocks("python")) >= 2


def test_make_knows_its_targets():
    for target in ("demo", "test", "test-slow", "lint", "parity"):
        subprocess.run(["make", "-n", target], cwd=ROOT, check=True, capture_output=True)


def save_numbers(path):
    """A run of an untrained Transformer on numbers."""
    data = NumbersConfig(num_pairs=100, num_val_pairs=5)
    tokenizer = prepare_pairs(data).tokenizer
    model = TransformerConfig(
        vocab_size=tokenizer.vocab_size + 3,
        context_length=64,
        width=8,
        num_heads=2,
        mlp_width=8,
        num_layers=1,
    )
    params = init_params(Transformer, model, jax.random.key(0))
    save_params(path, NumbersTranslationConfig(model=model, data=data), tokenizer, params)


@pytest.mark.filterwarnings("default::DeprecationWarning")
def test_the_python_code_runs(demo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAXFORMER_CACHE", str(tmp_path / "cache"))
    write_texts(tmp_path)
    shutil.copytree(demo, tmp_path / "runs" / "demo")
    save_numbers(tmp_path / "runs" / "numbers")
    names: dict = {}
    scope: dict = {}
    for block in blocks("python"):
        if re.search("^import jax$", block, re.MULTILINE):
            scope = {}  # what imports jax stands on its own, what follows goes on from it
        exec(block, scope)
        names |= scope
    assert names["logits"].shape == (2, 16, 64)
    assert "transformer.wte.weight" in names["arrays"]
    assert names["text"]
    assert 0 < names["bits"] < 16
    assert (len(names["words"]), names["bleu"] >= 0) == (1, True)
    assert names["outcome"].finished
    assert names["outcome"].evaluation.loss < math.log(names["data"].tokenizer.vocab_size)
    assert names["val_loss"] < math.log(names["data"].tokenizer.vocab_size)
    assert (names["found"].layer, names["found"].quantity) == ("norm", "output")


@pytest.mark.parametrize("block", COMMANDS[1:], ids=lambda block: block[-1])
def test_every_command_runs(block, demo, tmp_path):
    write_texts(tmp_path)
    if any("runs/demo" in command for command in block):
        shutil.copytree(demo, tmp_path / "runs" / "demo")
    for command in block:
        if command.startswith(". "):
            continue
        run(command, tmp_path)
