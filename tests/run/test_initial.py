"""Runs that begin with the weights of another run or of a file."""

import dataclasses
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer import checkpoint
from jaxformer.config import CheckpointConfig, DataConfig, LanguageConfig, RunConfig, RunOptions
from jaxformer.data.tokenizer import ByteTokenizer
from jaxformer.errors import UserError
from jaxformer.models.functional import init_params
from jaxformer.monitor.metrics import read_metrics
from jaxformer.run import directory
from jaxformer.run.initial import initial_state
from jaxformer.run.load import load_run
from jaxformer.run.loop import train
from jaxformer.sharding.mesh import make_mesh
from jaxformer.tasks.config_io import load_config
from jaxformer.tasks.kinds import kind_of
from jaxformer.tasks.program import build
from jaxformer.training.step import init_state
from jaxformer.weights.convert import to_torch
from jaxformer.weights.families import gpt2, marian
from jaxformer.weights.files import save_tensors
from jaxformer.weights.twin import TWIN
from tests.run import tiny

STEPS = 3


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Iterator[Path]:
    """Where texts, what is prepared of them, and two runs are."""
    place = tmp_path_factory.mktemp("initial")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXFORMER_CACHE", str(place / "cache"))
        tiny.one_device(patch)
        yield place


def config_of(kind: str, place: Path) -> RunConfig:
    """A run of three steps that is saved after each."""
    base = tiny.tiny_config(place) if kind == "gpt" else tiny.PAIRS
    every = CheckpointConfig(every=1, keep=3)
    return dataclasses.replace(base, steps=STEPS, eval_every=100, checkpoint=every)


@pytest.fixture(scope="module", params=["gpt", pytest.param("transformer", marks=pytest.mark.slow)])
def donor(request, place) -> tuple[RunConfig, Path]:
    """A run whose weights others begin with."""
    config, run_dir = config_of(request.param, place), place / request.param
    train(config, RunOptions(run_dir=run_dir))
    return config, run_dir


@pytest.fixture(scope="module")
def language(place) -> tuple[LanguageConfig, Path]:
    """A GPT of random parameters, which nobody has trained."""
    config = tiny.tiny_config(place, steps=STEPS)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, tokenizer="bytes"))
    model = dataclasses.replace(config.model, vocab_size=256)
    config = dataclasses.replace(config, model=model)
    params = init_params(kind_of(config).spec(config, 256).model, model, jax.random.key(5))
    directory.save_params(place / "imported", config, ByteTokenizer(), params, step=1234)
    return config, place / "imported"


def begin(config: RunConfig, devices: int = 1) -> Any:
    """The first state of a run."""
    mesh = make_mesh(config.mesh, jax.devices()[:devices])
    task = kind_of(config).task(config, mesh)
    program = build(task.spec, mesh)
    return initial_state(task, program), program


def test_a_run_begins_with_another_ones_weights_and_a_fresh_optimizer(donor, tmp_path, capsys):
    config, run_dir = donor
    other = dataclasses.replace(config, init_from=run_dir, seed=8)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train(other, RunOptions(run_dir=whole))
    assert f"begins with the weights of {run_dir}, step {STEPS}" in capsys.readouterr().out
    assert load_config(whole / "config.json").init_from == run_dir

    task, program = tiny.prepared(other)
    params = load_run(run_dir).params
    state = init_state(jax.tree.map(jnp.copy, params), task.spec.optimizer)
    state = jax.device_put(state, jax.tree.map(lambda leaf: leaf.sharding, program.state))
    for step in range(STEPS):
        state, _ = program.train_step(state, jax.device_put(task.batches[step], program.rows))
    expected = checkpoint.state_hash(state)
    assert checkpoint.state_hash(tiny.state_of(program, whole, STEPS)) == expected

    # Killed before its first checkpoint it begins with them again; later it needs them no more.
    train(other, RunOptions(run_dir=killed, stop_after=1))
    os.rename(killed / "checkpoints" / "1", killed / "checkpoints" / ".saving-1")
    own = load_config(killed / "config.json")
    train(own, RunOptions(run_dir=killed, resume=True, stop_after=1))
    assert f"begins with the weights of {run_dir}" in capsys.readouterr().out
    away = run_dir.rename(run_dir.with_name("away"))
    train(own, RunOptions(run_dir=killed, resume=True))
    away.rename(run_dir)
    assert checkpoint.state_hash(tiny.state_of(program, killed, STEPS)) == expected
    rows = [read_metrics(run / "metrics.jsonl") for run in (whole, killed)]
    ours, theirs = ([row["loss"] for row in run] for run in rows)
    assert ours == theirs


@pytest.mark.parametrize("layout", ["run", "twin", "gpt2", "index"])
def test_weights_are_the_same_from_a_run_and_from_every_layout_of_files(language, tmp_path, layout):
    config, run_dir = language
    params, path = load_run(run_dir).params, run_dir
    if layout != "run":
        path = tmp_path / "weights.safetensors"
        tensors = to_torch(params, TWIN if layout == "twin" else gpt2.HUGGING_FACE)
        save_tensors(tensors, path)
    if layout == "index":  # as in a cache of downloads, whose names are links to others
        names = ", ".join(f'"{name}": "weights.safetensors"' for name in tensors)
        (tmp_path / "blob").write_text(f'{{"weight_map": {{{names}}}}}')
        path = tmp_path / "model.safetensors.index.json"
        path.symlink_to(tmp_path / "blob")
    mesh = dataclasses.replace(config.mesh, data=2, fsdp=2, tensor=2)
    config = dataclasses.replace(config, init_from=path, mesh=mesh)
    (state, origin), program = begin(config, devices=8)
    assert origin.startswith(f"begins with the weights of {path}")
    assert origin.endswith("step 1,234") == (layout == "run")
    jax.tree.map(np.testing.assert_array_equal, state.params, params)
    assert [leaf.sharding for leaf in jax.tree.leaves(state)] == [
        leaf.sharding for leaf in jax.tree.leaves(program.state)
    ]
    assert state.step == 0


@pytest.mark.parametrize("table", [TWIN, marian.HUGGING_FACE], ids=["twin", "marian"])
def test_a_transformer_begins_with_a_file_of_either_layout(place, tmp_path, table):
    task, program = tiny.prepared(tiny.PAIRS)
    params = init_params(task.spec.model, task.spec.config.model, jax.random.key(9))
    save_tensors(to_torch(params, table), tmp_path / "weights.safetensors")
    config = dataclasses.replace(tiny.PAIRS, init_from=tmp_path / "weights.safetensors")
    (state, _), _ = begin(config)
    jax.tree.map(np.testing.assert_array_equal, state.params, params)
    assert jax.tree.structure(state) == jax.tree.structure(program.state)


def refusal(config: RunConfig, tmp_path: Path) -> str:
    """Why such a run is not begun; nothing was written."""
    with pytest.raises(UserError) as refused:
        train(config, RunOptions(run_dir=tmp_path / "refused"))
    assert not (tmp_path / "refused").exists()
    return str(refused.value)


def test_weights_that_do_not_fit_are_refused_before_anything_is_written(language, tmp_path):
    config, run_dir = language
    model = dataclasses.replace(config.model, width=12, num_heads=3, dropout_rate=0.3)
    said = refusal(dataclasses.replace(config, init_from=run_dir, model=model), tmp_path)
    assert "\n" not in said
    assert "--model.width 12 (it has 8)" in said
    assert "--model.num-heads 3 (it has 2)" in said
    assert "dropout" not in said
    # As many numbers, another function.
    model = dataclasses.replace(config.model, num_heads=4)
    said = refusal(dataclasses.replace(config, init_from=run_dir, model=model), tmp_path)
    assert "--model.num-heads 4 (it has 2)" in said
    said = refusal(dataclasses.replace(tiny.PAIRS, init_from=run_dir), tmp_path)
    assert "is a GPT, not a Transformer" in said


def test_a_run_whose_config_was_changed_by_hand_gives_no_weights(language, tmp_path):
    config, run_dir = language
    changed = shutil.copytree(run_dir, tmp_path / "changed")
    text = (changed / "config.json").read_text(encoding="utf-8")
    text = text.replace('"num_heads": 2', '"num_heads": 4')
    (changed / "config.json").write_text(text, encoding="utf-8")
    model = dataclasses.replace(config.model, num_heads=4)
    said = refusal(dataclasses.replace(config, init_from=changed, model=model), tmp_path)
    assert "--model.num-heads 4 (the run has 2)" in said


def test_a_run_of_another_tokenizer_gives_no_weights_but_its_tokenizer(language, tmp_path):
    config, run_dir = language
    config = dataclasses.replace(config, init_from=run_dir, steps=1)
    characters = DataConfig(path=config.data.path, tokenizer="characters")
    said = refusal(dataclasses.replace(config, data=characters), tmp_path)
    assert f"--data.tokenizer {run_dir / 'tokenizer.json'}" in said
    assert "vocab-size" not in said
    taken = DataConfig(path=config.data.path, tokenizer=str(run_dir / "tokenizer.json"))
    begin(dataclasses.replace(config, data=taken))


def nowhere(path: Path, run_dir: Path) -> None:
    """Nothing is there."""


def damaged(path: Path, run_dir: Path) -> None:
    shutil.copytree(run_dir, path)
    for file in (path / "checkpoints" / "1234" / "params").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")


def no_run(path: Path, run_dir: Path) -> None:
    path.mkdir()


def no_tensors(path: Path, run_dir: Path) -> None:
    path.write_text("{}")


def too_few(path: Path, run_dir: Path) -> None:
    tensors = to_torch(load_run(run_dir).params, TWIN)
    del tensors["norm.bias"]
    save_tensors(tensors, path)


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (nowhere, "is not there"),
        (damaged, "checkpoint 1234 cannot be used"),
        (no_run, "config.json is missing"),
        (no_tensors, "weights holds no tensors"),
        (too_few, "norm/bias needs norm.bias, which is missing"),
    ],
)
def test_weights_that_cannot_be_read_are_named(language, tmp_path, write, said):
    config, run_dir = language
    path = tmp_path / "weights"
    write(path, run_dir)
    found = refusal(dataclasses.replace(config, init_from=path), tmp_path)
    assert said in found
    assert str(path) in found


def test_another_origin_is_refused_when_a_run_is_resumed(language, place, tmp_path):
    config, run_dir = language
    options = RunOptions(run_dir=tmp_path / "run", stop_after=1)
    train(dataclasses.replace(config, init_from=run_dir), options)
    with pytest.raises(UserError, match=r"--init-from .* \(the run has .*imported\)"):
        train(
            dataclasses.replace(config, init_from=place),
            dataclasses.replace(options, resume=True),
        )
