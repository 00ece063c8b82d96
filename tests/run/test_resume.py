"""Resuming: what must be the same is compared and named, what may change is kept."""

import dataclasses
import hashlib
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import pytest

from jaxformer.config import (
    CopyConfig,
    DataConfig,
    NumbersConfig,
    RunOptions,
    TextPairsConfig,
)
from jaxformer.data.tokenizer import CharTokenizer
from jaxformer.errors import UserError
from jaxformer.models.functional import flat_params
from jaxformer.models.stacked import is_stacked
from jaxformer.parity.bounds import FLOAT32_LOSSES
from jaxformer.run import directory, resume
from jaxformer.run.load import load_run
from jaxformer.run.loop import train
from jaxformer.tasks.config_io import load_config
from tests.run import tiny
from tests.run.conftest import TEXT


def test_a_finished_run_says_so(config, tmp_path, capsys):
    config = dataclasses.replace(config, steps=2)
    train(config, RunOptions(run_dir=tmp_path / "run"))
    train(config, RunOptions(run_dir=tmp_path / "run", resume=True))
    assert "nothing is left to do" in capsys.readouterr().out


def test_resuming_nothing_is_refused(config, tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        train(config, RunOptions(run_dir=tmp_path / "run", resume=True))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"steps": 30}, "--steps 30 (the run has 40)"),
        ({"seed": 4}, "--seed 4 (the run has 3)"),
        ({"batch_size": 16}, "--batch-size 16 (the run has 8)"),
    ],
)
def test_resuming_with_another_configuration_names_what_differs(config, run_dir, change, named):
    with pytest.raises(UserError) as refusal:
        train(dataclasses.replace(config, **change), RunOptions(run_dir=run_dir, resume=True))
    assert named in str(refusal.value)


@pytest.mark.parametrize(
    ("setting", "value", "named"),
    [
        ("enable_x64", True, "JAX_ENABLE_X64 is True (the run has False)"),
        ("threefry_partitionable", False, "JAX_THREEFRY_PARTITIONABLE is False (the run has True)"),
        ("default_matmul_precision", "highest", "PRECISION is highest (the run has None)"),
    ],
)
def test_resuming_with_other_settings_of_jax_names_them(config, run_dir, setting, value, named):
    with getattr(jax, setting)(value), pytest.raises(UserError, match=re.escape(named)):
        train(config, RunOptions(run_dir=run_dir, resume=True))


def test_other_data_are_described_and_other_settings_of_old_runs_unknown(tmp_path):
    data = DataConfig()
    here = {"settings": {"JAX_X": 1}, "rows": None, "keys": {}}
    here |= {"data": "0f", "text": "python-3.12.1-stdlib: 30 MB"}
    resume.check_metadata(tmp_path, data, {"data": "0f", "rows": None, "keys": {}}, here)
    saved = here | {"data": "1e", "text": "python-3.11.4-stdlib: 29 MB"}
    with pytest.raises(UserError, match=r"python-3\.11\.4-.*python-3\.12\.1-.*Python's"):
        resume.check_metadata(tmp_path, data, saved, here)


@pytest.mark.parametrize(
    ("data", "flags"),
    [
        (DataConfig(), ["--data.path"]),
        (TextPairsConfig(), ["--data.source", "--data.target"]),
        (
            TextPairsConfig(val_source=Path("a"), val_target=Path("b")),
            ["--data.source", "--data.target", "--data.val-source", "--data.val-target"],
        ),
        (CopyConfig(), []),
        (NumbersConfig(), []),
    ],
)
def test_changed_data_are_restored_or_named_by_the_flags_of_the_kind(data, flags, tmp_path):
    here = {"settings": {}, "rows": None, "keys": {}, "data": "0f", "text": "pairs: 30 MB"}
    with pytest.raises(UserError, match="data differ") as refusal:
        resume.check_metadata(tmp_path, data, here | {"data": "1e"}, here)
    assert re.findall(r"--data[\w.-]+", str(refusal.value)) == flags
    assert "30 MB" not in str(refusal.value), "two equal descriptions tell nothing"


def test_validations_may_come_at_other_times_in_another_thread(config, run_dir):
    """A resumed run changes its --eval-every; Python handles no signals in other threads."""
    config = dataclasses.replace(config, eval_every=3)
    with ThreadPoolExecutor(1) as thread:
        options = RunOptions(run_dir=run_dir, resume=True, stop_after=3)
        outcome = thread.submit(train, config, options).result()
    assert (outcome.step, outcome.exit_status) == (3, 0)
    validated = [row[0] for row in tiny.losses(run_dir) if row[1] == "val"]
    assert validated == [3]
    assert load_run(run_dir).step == 3
    assert load_config(run_dir / "config.json").eval_every == 3, "the next resume keeps it"


@pytest.mark.parametrize("began", [False, True], ids=["list first", "scanned first"])
def test_a_run_continues_with_layers_scanned_or_not(config, tmp_path, capsys, began):
    """Losses are the other form's up to rounding; the checkpoint is opened without stacks."""
    config = dataclasses.replace(config, steps=3)
    forms = [
        dataclasses.replace(config, model=dataclasses.replace(config.model, scan_layers=scanned))
        for scanned in (began, not began)
    ]
    run_dir, whole = tmp_path / "run", tmp_path / "whole"
    train(forms[0], RunOptions(run_dir=whole))
    train(forms[0], RunOptions(run_dir=run_dir, stop_after=1))
    train(forms[1], RunOptions(run_dir=run_dir, resume=True))
    assert "--model.scan-layers: the run continues" in capsys.readouterr().err
    assert load_config(run_dir / "config.json").model.scan_layers is not began
    (*_, found), (*_, expected) = tiny.losses(run_dir), tiny.losses(whole)
    assert found[:2] == expected[:2]
    assert found[2] == pytest.approx(expected[2], abs=FLOAT32_LOSSES)
    runs = [load_run(place) for place in (run_dir, whole)]
    assert not any(map(is_stacked, flat_params(runs[0].params)))
    assert len({str(jax.tree.structure(run.params)) for run in runs}) == 1


def test_resuming_with_other_data_is_refused(config, place, run_dir):
    (place / "text.txt").write_text(TEXT.replace("beer", "reeb"), encoding="utf-8")
    try:
        with pytest.raises(UserError, match="data differ"):
            train(config, RunOptions(run_dir=run_dir, resume=True))
    finally:
        (place / "text.txt").write_text(TEXT, encoding="utf-8")


def test_a_text_that_was_moved_is_the_same_text(config, place, run_dir, tmp_path):
    moved = tmp_path / "elsewhere.txt"
    shutil.copy(place / "text.txt", moved)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, path=moved))
    outcome = train(config, RunOptions(run_dir=run_dir, resume=True, stop_after=3))
    assert outcome.step == 3
    assert load_config(run_dir / "config.json").data.path == moved
    load_run(run_dir)
    # Other text at another place is refused, and the run stays where it was.
    other = tmp_path / "other.txt"
    other.write_text(TEXT.replace("beer", "reeb"), encoding="utf-8")
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, path=other))
    with pytest.raises(UserError, match=r"data differ.*--data\.path"):
        train(config, RunOptions(run_dir=run_dir, resume=True))
    assert load_config(run_dir / "config.json").data.path == moved


def test_a_tokenizer_of_another_run_is_refused(config, run_dir):
    own = (run_dir / "tokenizer.json").read_bytes()
    (run_dir / "tokenizer.json").write_text('{"kind": "characters", "characters": "ABC"}')
    for use in (
        lambda: load_run(run_dir),
        lambda: train(config, RunOptions(run_dir=run_dir, resume=True)),
    ):
        with pytest.raises(UserError, match=r"tokenizer\.json is not the tokenizer"):
            use()
    # Other words for the same rules, or the file that was trained with: either is the run's own.
    (run_dir / "tokenizer.json").write_bytes(own + b"\n")
    load_run(run_dir)
    (run_dir / "tokenizer.json").write_bytes(own)
    described_otherwise = CharTokenizer("ABC")  # as another version of the library may
    directory.check_tokenizer(run_dir, described_otherwise, hashlib.sha256(own).hexdigest())
