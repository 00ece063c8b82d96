"""`--step` and `--best`: the checkpoint that a command reads."""

import dataclasses
from pathlib import Path

import pytest

from jaxformer.cli.main import main
from jaxformer.config import CheckpointConfig
from jaxformer.data.tokenizer import ByteTokenizer, CharTokenizer
from tests.run.tiny import PAIRS, tiny_config
from tests.runs import save_run

COMMANDS = {
    "sample": ["--max-new-tokens", "1"],
    "evaluate": [],
    "translate": [],
    "attention": ["--text", "abc"],
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    """A run of three checkpoints for each command; the first has the lowest loss."""
    place = tmp_path_factory.mktemp("checkpoints")
    every = CheckpointConfig(every=1, keep=3)
    language = tiny_config(place, checkpoint=every)
    model = dataclasses.replace(language.model, vocab_size=256)
    language = dataclasses.replace(language, model=model)
    pairs = dataclasses.replace(
        PAIRS, checkpoint=every, model=dataclasses.replace(PAIRS.model, vocab_size=8)
    )
    gpt = save_run(place / "gpt", language, ByteTokenizer(), steps=(3, 5, 8))
    transformer = save_run(place / "pairs", pairs, CharTokenizer("abcde"), steps=(3, 5, 8))
    return {name: transformer if name == "translate" else gpt for name in COMMANDS}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_that_reads_a_checkpoint_can_be_told_which(command, runs, capsys):
    words = [command, str(runs[command]), *COMMANDS[command]]
    for which, said in (
        (["--step", "4"], "no checkpoint 4"),
        (["--step", "5", "--best"], "--step 5 and --best"),
    ):
        with pytest.raises(SystemExit) as stop:
            main([*words, *which])
        assert stop.value.code == 2
        assert said in (error := capsys.readouterr().err)
        assert ("3, 5, 8" in error) == (which[-1] == "4")
