"""The README's commands and code run as they stand, on a run small enough to make here."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

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
DEMO = "python -m train.gpt_stdlib --run-dir runs/demo"


def small(command: str) -> list[str]:
    """The command with sizes that take seconds; where it runs and what it names stay."""
    words = shlex.split(command)
    if words[0] == "python" and "--resume" not in words:
        for flag in ("--steps", "--stop-after"):
            if flag in words:
                words[words.index(flag) + 1] = {"--steps": "4", "--stop-after": "2"}[flag]
        of_pairs = words[2].startswith("train.transformer")
        tiny = shlex.split(TINY_PAIRS if of_pairs else TINY)
        given = {word for word in words if word.startswith("--")}
        pairs = zip(tiny[::2], tiny[1::2], strict=True)
        words += [word for pair in pairs if pair[0] not in given for word in pair]
        if "--data.path" not in words and not of_pairs:
            words += ["--data.path", "my_texts/"]
    executables = {"python": [sys.executable], "jaxformer": [sys.executable, "-m", "jaxformer"]}
    return executables[words[0]] + words[1:]


def test_there_are_commands_and_code_to_run():
    words = [command.split()[0] for block in COMMANDS for command in block]
    assert words.count("make") == 2
    assert COMMANDS[0] == ["make demo", "make test"]
    assert words.count("jaxformer") >= 6
    assert len(blocks("python")) >= 2


def test_make_knows_its_targets():
    for target in ("demo", "test", "test-slow", "lint", "parity"):
        subprocess.run(["make", "-n", target], cwd=ROOT, check=True, capture_output=True)


@pytest.mark.filterwarnings("default::DeprecationWarning")
def test_the_python_code_runs():
    names: dict = {}
    for block in blocks("python"):
        exec(block, names)
    assert names["logits"].shape == (2, 16, 64)
    assert "transformer.wte.weight" in names["arrays"]


@pytest.mark.parametrize("block", COMMANDS[1:], ids=lambda block: block[-1])
def test_every_command_runs(block, tmp_path):
    (tmp_path / "my_texts").mkdir()
    for i in range(30):
        (tmp_path / "my_texts" / f"{i}.py").write_text(TEXT[i:], encoding="utf-8")
    (tmp_path / "shakespeare.txt").write_text(TEXT, encoding="utf-8")
    environment = {
        **os.environ,
        "XLA_FLAGS": "",
        "JAXFORMER_CACHE": str(tmp_path / "cache"),
        "PYTHONPATH": str(ROOT),
    }
    made_before = [DEMO] if any("runs/demo" in command for command in block) else []
    for command in [*made_before, *block]:
        if command.startswith(". "):
            continue
        echoed, _, command = command.rpartition(" | ")
        text = " ".join(shlex.split(echoed)[1:]) + "\n"
        done = subprocess.run(
            small(command),
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            input=text,
        )
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        assert done.stderr == "", command
        assert done.stdout, command
