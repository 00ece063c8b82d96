"""A translation run: resumed = uninterrupted, to the bit; its batches are known by its log."""

import dataclasses
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxformer import checkpoint
from jaxformer.batch import PairBatch
from jaxformer.config import (
    CheckpointConfig,
    CopyConfig,
    CopyTranslationConfig,
    MeshConfig,
    NoamConfig,
    RunOptions,
    TextPairsConfig,
    TextTranslationConfig,
    TransformerConfig,
)
from jaxformer.errors import UserError
from jaxformer.monitor.metrics import read_metrics
from jaxformer.run.load import load_run
from jaxformer.run.loop import train
from jaxformer.sharding.mesh import make_mesh
from jaxformer.tasks.program import build
from jaxformer.tasks.translation import translation_task
from tests.run import forked, tiny

MODEL = TransformerConfig(
    vocab_size=0,
    context_length=16,
    width=16,
    num_heads=2,
    mlp_width=32,
    num_layers=1,
    dropout_rate=0.2,
    init_std=0.25,
)
DATA = CopyConfig(num_symbols=4, max_length=10, num_pairs=300, num_val_pairs=20)
CONFIG = CopyTranslationConfig(
    model=MODEL,
    data=DATA,
    optimizer=NoamConfig(factor=0.2, warmup_steps=20),
    checkpoint=CheckpointConfig(every=15, keep=2),
    mesh=MeshConfig(data=8),
    batch_tokens=128,
    steps=30,
    eval_every=10,
    seed=3,
)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXFORMER_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def begun(tmp_path_factory) -> Path:
    """A run that was stopped after six steps."""
    place = tmp_path_factory.mktemp("translation")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXFORMER_CACHE", str(place / "cache"))
        train(CONFIG, RunOptions(run_dir=place / "run", stop_after=6))
    return place / "run"


@pytest.fixture
def run_dir(begun, tmp_path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(begun, tmp_path / "run"))


def state_hash(config: CopyTranslationConfig, run_dir: Path) -> str:
    mesh = make_mesh(config.mesh)
    program = build(translation_task(config, mesh).spec, mesh)
    state, found = checkpoint.restore(run_dir / "checkpoints", checkpoint.split(program.state))
    assert found.step == config.steps
    return checkpoint.state_hash(state)


def flags(run_dir: Path, steps: int) -> list[str]:
    """The command line that makes CONFIG with the recipe."""
    return [
        *(sys.executable, "-m", "train.transformer_copy", "--run-dir", str(run_dir)),
        *("--steps", str(steps), "--batch-tokens", "128", "--eval-every", "10", "--seed", "3"),
        *("--model.width", "16", "--model.num-heads", "2", "--model.mlp-width", "32"),
        *("--model.num-layers", "1", "--model.dropout-rate", "0.2", "--model.context-length", "16"),
        *("--data.num-symbols", "4", "--data.max-length", "10", "--data.num-pairs", "300"),
        *("--data.num-val-pairs", "20", "--checkpoint.every", "15"),
        *(
            "--optimizer.warmup-steps",
            "20",
            "--optimizer.factor",
            "0.2",
            "--model.init-std",
            "0.25",
        ),
    ]


@pytest.mark.parametrize("half", [10, pytest.param(100, marks=pytest.mark.slow)])
def test_a_run_equals_its_half_and_a_new_process_and_the_rest(tmp_path, half):
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    for words in (
        flags(whole, 2 * half),
        [*flags(halves, 2 * half), "--stop-after", str(half)],
        [*flags(halves, 2 * half)[:5], "--resume"],  # the run knows its own flags
    ):
        forked.run(words[2], words[3:]).check_returncode()
    assert tiny.losses(halves) == tiny.losses(whole)
    numbers = [row[0] for row in tiny.losses(whole) if row[1] == "train"]
    assert numbers == list(range(1, 2 * half + 1))
    config = dataclasses.replace(CONFIG, steps=2 * half, label_smoothing=0.0)
    assert len({state_hash(config, run) for run in (whole, halves)}) == 1


@pytest.mark.usefixtures("drawn")
def test_a_run_leaves_what_a_run_directory_holds(tmp_path, capsys):
    outcome = train(CONFIG, RunOptions(run_dir=tmp_path / "run"))
    assert outcome.exit_status == 0
    assert outcome.finished
    names = {path.name for path in (tmp_path / "run").iterdir()} - {".lock"}
    assert names == {"config.json", "tokenizer.json", "metrics.jsonl", "checkpoints", "curves.png"}
    said = capsys.readouterr().out
    assert "compiled" not in said, "a shape of batch was compiled twice"
    assert "of 2 different shapes" in said
    assert "padding" in said
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    validations = [row["loss"] for row in rows if row["split"] == "val"]
    assert validations[-1] < validations[0], "it learned nothing"
    rates = [row["learning_rate"] for row in rows if row["split"] == "train"]
    assert rates.index(max(rates)) == CONFIG.optimizer.warmup_steps - 1


def test_the_speed_is_that_of_the_targets_of_each_batch(run_dir):
    source = translation_task(CONFIG, make_mesh(CONFIG.mesh)).batches
    for row in read_metrics(run_dir / "metrics.jsonl")[1:5]:
        tokens = row["tokens_per_second"] * row["step_seconds"]
        assert tokens == pytest.approx(source[row["step"] - 1].mask.sum())


@pytest.mark.slow  # the quick set does so with steps: tests/sharding/test_pair_batches.py
def test_eight_devices_equal_one(tmp_path):
    config = dataclasses.replace(CONFIG, steps=10)
    one = losses_on_one_device(config)
    for name, mesh in (("data", MeshConfig(data=8)), ("mixed", MeshConfig(fsdp=2, tensor=2))):
        train(dataclasses.replace(config, mesh=mesh), RunOptions(run_dir=tmp_path / name))
        ours = [row[2] for row in tiny.losses(tmp_path / name) if row[1] == "train"]
        np.testing.assert_allclose(ours, one, atol=2e-6, rtol=0)


def losses_on_one_device(config: CopyTranslationConfig) -> np.ndarray:
    mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
    task = translation_task(config, mesh)
    program = build(task.spec, mesh)
    state, found = program.fresh_state(), []
    for step in range(config.steps):
        batch = jax.device_put(task.batches[step], program.rows)
        state, metrics = program.train_step(state, batch)
        found.append(float(metrics.loss))
    return np.array(found)


def test_more_compilations_than_shapes_are_reported(tmp_path, capsys, monkeypatch):
    def train_step_without_placed_state(spec, mesh):
        program = build(spec, mesh)
        state = jax.tree.map(np.asarray, program.fresh_state())
        zeros = np.zeros((8, 8), np.int32), np.zeros((8, 8), bool)
        program.train_step(state, PairBatch(zeros[0], zeros[1], zeros[0], zeros[0], zeros[1]))
        return program

    monkeypatch.setattr("jaxformer.run.loop.build", train_step_without_placed_state)
    train(dataclasses.replace(CONFIG, steps=12), RunOptions(run_dir=tmp_path / "run"))
    assert "compiled 3 times, not 2" in capsys.readouterr().out


def text_config(directory: Path) -> TextTranslationConfig:
    lines = [f"line {i} of {i * i}" for i in range(200)]
    (directory / "a.txt").write_text("\n".join(lines), encoding="utf-8")
    (directory / "b.txt").write_text("\n".join(lines[::-1]), encoding="utf-8")
    data = TextPairsConfig(
        source=directory / "a.txt", target=directory / "b.txt", tokenizer="characters"
    )
    shared = {f.name: getattr(CONFIG, f.name) for f in dataclasses.fields(CONFIG)}
    model = dataclasses.replace(MODEL, context_length=32)
    return TextTranslationConfig(**{**shared, "model": model, "data": data})


def test_resuming_with_other_data_is_refused(tmp_path):
    config = text_config(tmp_path)
    options = RunOptions(run_dir=tmp_path / "run", stop_after=2)
    train(config, options)
    text = config.data.source.read_text(encoding="utf-8")
    config.data.source.write_text(text.replace("line", "enil"), encoding="utf-8")
    with pytest.raises(UserError, match="data differ"):
        train(config, dataclasses.replace(options, resume=True))


def test_resuming_as_another_kind_of_run_is_refused(run_dir, tmp_path):
    with pytest.raises(UserError, match=r"a transformer_text run \(the run is transformer_copy\)"):
        train(text_config(tmp_path), RunOptions(run_dir=run_dir, resume=True))


def test_resuming_where_batches_would_be_others_is_refused(run_dir, monkeypatch):
    monkeypatch.setattr("jaxformer.tasks.translation.ROWS", 16)  # as on 16 devices
    with pytest.raises(UserError, match="rows differ: the run has 8, here is 16"):
        train(CONFIG, RunOptions(run_dir=run_dir, resume=True))


def test_a_context_that_is_too_short_is_refused(tmp_path):
    model = dataclasses.replace(MODEL, context_length=10)  # ten letters and the start
    with pytest.raises(UserError, match="longest pair has 11 tokens, more than model"):
        train(dataclasses.replace(CONFIG, model=model), RunOptions(run_dir=tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_held_out_pair_longer_than_the_context_is_refused(tmp_path):
    """No pair of validation files is dropped: its first evaluation would end the run."""
    config, held_out = text_config(tmp_path), tmp_path / "long.txt"
    held_out.write_text("line 1 " * 7 + "\nline 2\n", encoding="utf-8")
    data = dataclasses.replace(config.data, val_source=held_out, val_target=held_out)
    with pytest.raises(UserError, match="longest pair has 49 tokens, more than model"):
        train(dataclasses.replace(config, data=data), RunOptions(run_dir=tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_vocabulary_without_room_for_the_special_tokens_is_refused(tmp_path):
    model = dataclasses.replace(MODEL, vocab_size=6)
    with pytest.raises(UserError, match="vocab-size 6 is less than the tokenizer's 7"):
        train(dataclasses.replace(CONFIG, model=model), RunOptions(run_dir=tmp_path / "run"))


def test_a_run_is_opened_with_its_special_tokens(begun):
    run = load_run(begun)
    assert isinstance(run.config, CopyTranslationConfig)
    assert dataclasses.astuple(run.specials) == (4, 5, 6)
    assert run.config.model.vocab_size == 7
