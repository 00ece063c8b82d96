"""Opening a run: the saved parameters come back; what cannot be opened is refused in one line."""

import dataclasses
import functools
import json
import shutil

import jax
import numpy as np
import pytest

from jaxformer import checkpoint, manifest
from jaxformer.batch import Batch
from jaxformer.checkpoint import PARAMS
from jaxformer.config import CheckpointConfig, DataConfig, GPTConfig, LanguageConfig, RunOptions
from jaxformer.data.tokenizer import ByteTokenizer, CharTokenizer, save_tokenizer
from jaxformer.errors import UserError
from jaxformer.models.functional import init_params
from jaxformer.models.gpt import GPT
from jaxformer.run import directory, loop
from jaxformer.run.evaluate import evaluate_params
from jaxformer.run.load import load_run
from tests.runs import save_run
from tests.states import snapshot

MODEL = GPTConfig(vocab_size=256, context_length=8, width=8, num_heads=2, mlp_width=8, num_layers=1)
CONFIG = LanguageConfig(model=MODEL, checkpoint=CheckpointConfig(every=1))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run of two checkpoints, not to be changed."""
    path = tmp_path_factory.mktemp("runs") / "run"
    save_run(path, CONFIG, ByteTokenizer(), steps=(1, 2))
    return path


@pytest.fixture
def run_dir(saved, tmp_path):
    """A copy of it."""
    return shutil.copytree(saved, tmp_path / "run")


@pytest.mark.parametrize(("wanted", "step"), [(None, 2), (1, 1)])
def test_the_parameters_of_the_step_come_back(run_dir, wanted, step):
    run = load_run(run_dir, step=wanted)
    assert run.step == step
    assert run.data_fingerprint == f"text of step {step}"
    assert run.config == CONFIG
    assert run.tokenizer.fingerprint == ByteTokenizer().fingerprint
    expected = init_params(GPT, MODEL, jax.random.key(step))
    jax.tree.map(np.testing.assert_array_equal, run.params, expected)


def cut_short(run_dir, step):
    files = (run_dir / directory.CHECKPOINTS / str(step) / PARAMS).rglob("*")
    victim = max((path for path in files if path.is_file()), key=lambda path: path.stat().st_size)
    victim.write_bytes(victim.read_bytes()[:-1])


def test_a_damaged_checkpoint_is_passed_over_and_named(run_dir, capsys):
    cut_short(run_dir, 2)
    assert load_run(run_dir).step == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "checkpoint 2" in line
    assert line.endswith("; step 1 is used instead")


@pytest.fixture(scope="module")
def of_four(tmp_path_factory):
    """A run of four checkpoints, not to be changed."""
    path = tmp_path_factory.mktemp("runs") / "run"
    config = LanguageConfig(model=MODEL, checkpoint=CheckpointConfig(keep=4, every=1))
    save_run(path, config, ByteTokenizer(), steps=(1, 2, 3, 4))
    return path


def mean_of(*steps):
    """numpy's mean, in float64, of the parameters of these steps."""
    sets = [init_params(GPT, MODEL, jax.random.key(step)) for step in steps]
    return jax.tree.map(lambda *leaves: np.mean(np.asarray(leaves, np.float64), axis=0), *sets)


@pytest.mark.parametrize(
    ("step", "count", "steps"), [(None, 3, (4, 3, 2)), (3, 2, (3, 2)), (None, 1, (4,))]
)
def test_the_newest_checkpoints_are_averaged(of_four, step, count, steps):
    run = load_run(of_four, step=step, average=count)
    assert run.step == steps[0]
    assert run.data_fingerprint == f"text of step {steps[0]}"
    close = functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-8)
    jax.tree.map(close, run.params, mean_of(*steps))


def test_the_best_checkpoint_is_the_one_with_the_lowest_validation_loss(of_four, imported, capsys):
    assert load_run(of_four, best=True).step == 1  # its loss is its step
    with pytest.raises(UserError, match=r"--step 3 .*--best"):
        load_run(of_four, step=3, best=True)
    with pytest.raises(UserError, match="has 1 checkpoints to average, not 2"):
        load_run(of_four, best=True, average=2)
    with pytest.raises(UserError, match="has a validation loss"):
        load_run(imported[0], best=True)


def test_a_damaged_best_checkpoint_gives_way_to_the_next_best(of_four, tmp_path, capsys):
    run_dir = shutil.copytree(of_four, tmp_path / "run")
    cut_short(run_dir, 1)
    run = load_run(run_dir, best=True)
    assert run.step == 2
    jax.tree.map(
        np.testing.assert_array_equal, run.params, init_params(GPT, MODEL, jax.random.key(2))
    )
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("checkpoint 1 cannot be used")
    assert line.endswith("; step 2 is used instead")


def test_a_best_checkpoint_whose_loss_is_lost_is_named(of_four, tmp_path, capsys):
    run_dir = shutil.copytree(of_four, tmp_path / "run")
    (run_dir / directory.CHECKPOINTS / "1" / manifest.FILE).write_bytes(b"")
    assert load_run(run_dir, best=True).step == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("checkpoint 1 cannot be used: manifest.jsonl")
    assert line.endswith("; step 2 is used instead")
    for step in ("2", "3", "4"):
        (run_dir / directory.CHECKPOINTS / step / manifest.FILE).unlink()
    with pytest.raises(UserError, match="checkpoint 4 cannot be used"):
        load_run(run_dir, best=True)


def test_a_step_that_is_not_there_names_those_that_are(of_four):
    with pytest.raises(UserError, match=r"no checkpoint 7 in .*the steps 1, 2, 3, 4$"):
        load_run(of_four, step=7)


def test_damaged_checkpoints_are_not_averaged_but_named(of_four, tmp_path, capsys):
    run_dir = shutil.copytree(of_four, tmp_path / "run")
    cut_short(run_dir, 4)
    cut_short(run_dir, 2)
    run = load_run(run_dir, average=2)
    assert run.step == 3
    close = functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-8)
    jax.tree.map(close, run.params, mean_of(3, 1))
    first, second = capsys.readouterr().err.splitlines()
    assert "checkpoint 4" in first
    assert "checkpoint 2" in second
    with pytest.raises(UserError, match="has 2 checkpoints to average, not 3") as refusal:
        load_run(run_dir, average=3)
    assert "checkpoint 2 cannot be used" in str(refusal.value)


def test_a_checkpoint_between_two_scheduled_ones_is_not_averaged(tmp_path):
    config = LanguageConfig(model=MODEL, checkpoint=CheckpointConfig(keep=3, every=2))
    save_run(tmp_path / "run", config, ByteTokenizer(), steps=(2, 3, 4, 6))
    steps = checkpoint.steps(tmp_path / "run" / directory.CHECKPOINTS)
    assert directory.checkpoints_to_average(steps, config) == [6, 4, 2]
    run = load_run(tmp_path / "run", average=2)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-8)
    jax.tree.map(close, run.params, mean_of(6, 4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"average": 5}, "has 4 checkpoints to average, not 5"),
        ({"average": 3, "step": 2}, "has 2 checkpoints to average, not 3"),
        ({"average": 0}, "average 0 is "),
        ({"average": 2, "step": 7}, "7"),
    ],
)
def test_an_average_of_what_is_not_there_is_refused(of_four, options, message):
    with pytest.raises(UserError, match=message):
        load_run(of_four, **options)


def test_parameters_are_read_without_the_optimizer(run_dir):
    """Sampling, translating, evaluating and averaging do with parameters alone."""
    expected = load_run(run_dir), load_run(run_dir, average=2)
    for step in ("1", "2"):
        shutil.rmtree(run_dir / directory.CHECKPOINTS / step / "optimizer")
    found = load_run(str(run_dir)), load_run(run_dir, average=2)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.step == 2
        jax.tree.map(np.testing.assert_array_equal, ours.params, theirs.params)
    with pytest.raises(UserError, match="checkpoint 2 cannot be used: optimizer/"):
        checkpoint.read_metadata(run_dir / directory.CHECKPOINTS)


@pytest.fixture
def imported(tmp_path, monkeypatch):
    """A run of parameters that were not trained here, and a text to score them on."""
    monkeypatch.setenv("JAXFORMER_CACHE", str(tmp_path / "cache"))
    (tmp_path / "text.txt").write_text("green bottles hanging on the wall\n" * 40, encoding="utf-8")
    data = DataConfig(path=tmp_path / "text.txt", tokenizer="bytes")
    config = LanguageConfig(model=MODEL, data=data, steps=2, batch_size=8)
    params = init_params(GPT, MODEL, jax.random.key(7))
    directory.save_params(tmp_path / "run", config, ByteTokenizer(), params)
    return tmp_path / "run", config, params


def test_a_run_without_an_optimizer_is_a_run(imported):
    run_dir, config, params = imported
    run = load_run(run_dir, LanguageConfig)
    assert (run.step, run.config, run.data_fingerprint) == (0, config, None)
    jax.tree.map(np.testing.assert_array_equal, run.params, params)
    (text,) = run.sample("green", max_new_tokens=5, seed=3)
    assert text == run.sample("green", max_new_tokens=5, seed=3)[0] != ""
    assert run.evaluate()["loss"] == pytest.approx(np.log(256), rel=0.05)  # it knows nothing


def test_a_run_without_an_optimizer_knows_its_tokenizer(imported):
    run_dir, *_ = imported
    save_tokenizer(CharTokenizer("abc"), run_dir / directory.TOKENIZER)
    with pytest.raises(UserError, match=r"tokenizer\.json is not the tokenizer"):
        load_run(run_dir)


def test_a_run_without_an_optimizer_is_not_resumed(imported):
    run_dir, config, _ = imported
    before = snapshot(run_dir / directory.CHECKPOINTS)
    with pytest.raises(UserError, match="checkpoint 0 holds params, no optimizer") as refusal:
        loop.train(config, RunOptions(run_dir=run_dir, resume=True))
    assert "\n" not in str(refusal.value)
    assert snapshot(run_dir / directory.CHECKPOINTS) == before


def test_parameters_are_not_written_over_a_run(imported):
    run_dir, config, params = imported
    with pytest.raises(UserError, match="already holds a run"):
        directory.save_params(run_dir, config, ByteTokenizer(), params)


def without_checkpoints(path):
    shutil.rmtree(path / directory.CHECKPOINTS)


def without_config(path):
    (path / directory.CONFIG).unlink()


def without_tokenizer(path):
    (path / directory.TOKENIZER).unlink()


def of_another_kind(path):
    values = json.loads((path / directory.CONFIG).read_text())
    (path / directory.CONFIG).write_text(json.dumps({**values, "kind": "transformer"}))


def of_another_width(path):
    values = json.loads((path / directory.CONFIG).read_text())
    values["model"]["width"] = 16
    (path / directory.CONFIG).write_text(json.dumps(values))


def with_a_larger_tokenizer(path):
    save_tokenizer(CharTokenizer("".join(map(chr, range(1, 400)))), path / directory.TOKENIZER)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "is not a directory"),
        (without_config, "config.json is missing"),
        (without_tokenizer, "tokenizer.json"),
        (without_checkpoints, "no checkpoint"),
        (of_another_kind, "describes a 'transformer'"),
        (of_another_width, r"configuration: --model.width 16 \(the run has 8\); restore the run's"),
        (with_a_larger_tokenizer, "knows 399 tokens but the model only 256"),
    ],
)
def test_a_directory_that_holds_no_such_run_is_refused(run_dir, damage, message):
    damage(run_dir)
    with pytest.raises(UserError, match=message):
        load_run(run_dir)


def test_a_tokenizer_smaller_than_the_model_is_fine(tmp_path):
    model = dataclasses.replace(MODEL, vocab_size=10)
    save_run(tmp_path / "run", LanguageConfig(model=model), CharTokenizer("abc"))
    assert load_run(tmp_path / "run").tokenizer.vocab_size == 3


def test_a_run_with_flash_attention_is_opened_where_there_is_none_and_says_so(tmp_path, capsys):
    model = dataclasses.replace(MODEL, width=16, attention="flash", dtype="bfloat16")
    save_run(tmp_path / "run", LanguageConfig(model=model), ByteTokenizer())
    run = load_run(tmp_path / "run")
    assert run.config.model.attention == "flash"
    assert len(run.sample("a", max_new_tokens=3)) == 1
    row = np.arange(8, dtype=np.int32)[None]
    loss, _ = evaluate_params(run, [Batch(row, row + 1, row > 0)])
    assert np.isfinite(loss.loss)
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert all(word in said for word in (str(tmp_path / "run"), "model.attention flash", "cpu"))


def test_the_best_of_old_is_not_one_of_the_newest(tmp_path):
    config = LanguageConfig(model=MODEL, checkpoint=CheckpointConfig(keep=2, every=1))
    save_run(tmp_path / "run", config, ByteTokenizer(), steps=(1, 2, 3, 4))
    kept = (tmp_path / "run" / directory.CHECKPOINTS).glob("[0-9]*")
    assert sorted(path.name for path in kept) == ["1", "3", "4"]
    assert load_run(tmp_path / "run", average=2).step == 4
    with pytest.raises(UserError, match="has 2 checkpoints to average, not 3"):
        load_run(tmp_path / "run", average=3)
