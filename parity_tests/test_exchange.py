"""Other tools' models in and out: beside transformers and nanoGPT, within the bounds, and refused.

The cases and what is measured are those of `benchmarks/exchange.py`, which makes the table of
docs/models.md of them.
"""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
import transformers

from benchmarks.exchange import CASES, QUICK, measure
from jaxformer.cli.main import main
from jaxformer.config import GPTConfig, LanguageConfig
from jaxformer.data.tokenizer import BPETokenizer, ByteTokenizer, CharTokenizer, Tokenizer
from jaxformer.errors import UserError
from jaxformer.exchange import exporting
from jaxformer.exchange.foreign import Options
from jaxformer.exchange.importing import import_model
from jaxformer.models.functional import merge
from jaxformer.parity.bounds import BOUNDS
from jaxformer.parity.engine.settings import arithmetic
from jaxformer.porting.compare import relative_error
from jaxformer.run.load import load_run
from jaxformer.weights.convert import to_torch
from jaxformer.weights.huggingface import FAMILIES
from jaxformer.weights.settings import read_settings
from tests.nanogpt import model as nanogpt
from tests.runs import save_run


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=case.name, marks=[] if case.name in QUICK else pytest.mark.slow)
        for case in CASES
    ],
)
def test_an_imported_model_is_the_same_in_float64_and_goes_out_as_it_was(case, tmp_path):
    with arithmetic("float64"):
        found = measure(case, tmp_path)
    for quantity in ("logits", "hidden", "loss", "gradients"):
        assert found[quantity] <= BOUNDS["model", "float64"], quantity
    assert found["greedy"]
    assert found["round_trip"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> tuple[nanogpt.GPT, Path]:
    """A model of nanoGPT and its ckpt.pt, as torch.compile names its tensors."""
    torch.manual_seed(0)
    sizes = {"block_size": 13, "vocab_size": 53, "n_layer": 2, "n_head": 3, "n_embd": 24}
    model = nanogpt.GPT(nanogpt.GPTConfig(**sizes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    tensors = {f"_orig_mod.{name}": tensor for name, tensor in model.state_dict().items()}
    path = tmp_path_factory.mktemp("nanogpt") / "ckpt.pt"
    sizes |= {"dropout": 0.1, "bias": True}
    torch.save({"model": tensors, "model_args": sizes, "iter_num": 7, "config": {}}, path)
    return model, path


def test_a_checkpoint_of_nanogpt_is_the_same_function(checkpoint, tmp_path):
    model, path = checkpoint
    with arithmetic("float64"):
        import_model(path, tmp_path / "run", Options(tokenizer="ids", dtype="float64"))
        run = load_run(tmp_path / "run")
        tokens = np.random.default_rng(0).integers(0, 53, (2, 13))
        logits = merge(run.graphdef, run.params)(jax.numpy.asarray(tokens))
        theirs, _ = model.double()(torch.tensor(tokens), torch.tensor(tokens))
        model.float()
        assert relative_error(logits, theirs) <= BOUNDS["model", "float64"]


def test_a_checkpoint_that_is_more_than_tensors_is_never_unpickled(checkpoint, tmp_path, capsys):
    class Fault:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "unpickled",)

    content = torch.load(checkpoint[1], weights_only=True)
    torch.save(content | {"config": Fault()}, tmp_path / "ckpt.pt")
    with pytest.raises(SystemExit) as stop:
        main(["import", str(tmp_path / "ckpt.pt"), str(tmp_path / "run"), "--tokenizer", "ids"])
    assert stop.value.code == 2
    assert "no checkpoint of tensors and numbers alone" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["ckpt.pt"]


SIZES: dict[str, Any] = {"context_length": 11, "width": 10, "num_heads": 5, "mlp_width": 13}
TEXT = "ein Wort und noch ein Wort, eins zwei drei\n" * 9
TOKENIZERS: dict[str, Tokenizer] = {
    "bytes": ByteTokenizer(),
    "characters": CharTokenizer.from_texts([TEXT]),
    "bpe": BPETokenizer.train([TEXT], 300),
}


def tiny_run(path: Path, tokenizer: Tokenizer, use_bias: bool = True, step: int = 1) -> Path:
    """A run of a random GPT."""
    model = GPTConfig(
        vocab_size=tokenizer.vocab_size, num_layers=1, use_bias=use_bias, init_std=0.3, **SIZES
    )
    return save_run(path, LanguageConfig(model=model), tokenizer, [step])


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory) -> Path:
    return tiny_run(tmp_path_factory.mktemp("runs") / "run", TOKENIZERS["bpe"])


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_transformers_reads_a_run_and_its_tokenizer(kind, tmp_path, capsys):
    tokenizer = TOKENIZERS[kind]
    tiny_run(tmp_path / "run", tokenizer, use_bias=kind != "bytes")
    main(["export", str(tmp_path / "run"), str(tmp_path / "out")])
    out = capsys.readouterr().out
    assert "tokens equal" in out
    assert "read again to the bit" in out
    assert ("zeros" in out) == (kind == "bytes")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = theirs(TEXT, add_special_tokens=False)["input_ids"]
    assert ids == tokenizer.encode(TEXT).tolist()
    assert theirs.decode(ids) == TEXT


def test_what_transformers_would_read_otherwise_is_not_written(run_dir, tmp_path, monkeypatch):
    """Two tensors are exchanged behind the back of the table."""

    def exchanged(params: Any, table: Any) -> dict[str, np.ndarray]:
        found = to_torch(params, table)
        one, other = (f"transformer.h.0.ln_{i}.bias" for i in (1, 2))
        return found | {one: found[other] + 1, other: found[one]}

    monkeypatch.setattr(exporting, "to_torch", exchanged)
    with pytest.raises(UserError, match="is read otherwise than it was written"):
        exporting.export_huggingface(load_run(run_dir), tmp_path / "out")
    monkeypatch.setattr(exporting, "read_back", lambda *_: {})
    with pytest.raises(UserError, match="transformers reads another model"):
        exporting.export_huggingface(load_run(run_dir), tmp_path / "out")
    assert not any(tmp_path.iterdir())


def test_two_tools_are_compared_on_prompts_and_two_models_differ(run_dir, tmp_path, capsys):
    exporting.export_huggingface(load_run(run_dir), tmp_path / "out", verify=False)
    (tmp_path / "prompts.txt").write_text("ein Wort\nund\n")
    words = ["--prompts", str(tmp_path / "prompts.txt"), "--tokens", "4"]
    words += ["--json", str(tmp_path / "f.json")]
    main(["compare", str(run_dir), str(tmp_path / "out"), *words])
    found = json.loads((tmp_path / "f.json").read_text())
    encoded = [TOKENIZERS["bpe"].encode(text) for text in ("ein Wort", "und")]
    assert found.pop("worst_log_prob_difference") < 1e-4
    count = sum(min(len(tokens) + 4, SIZES["context_length"]) for tokens in encoded)
    assert found == {"ok": True, "tokens": count, "equal_tokens": count, "first_difference": None}

    tiny_run(tmp_path / "other", TOKENIZERS["bpe"], step=2)
    with pytest.raises(SystemExit) as stop:
        main(["compare", str(run_dir), str(tmp_path / "other"), *words])
    assert stop.value.code == 1
    found = json.loads((tmp_path / "f.json").read_text())
    assert not found["ok"]
    assert found["equal_tokens"] < found["tokens"] == count
    assert found["worst_log_prob_difference"] > 1e-3
    ours, theirs = (load_run(path) for path in (run_dir, tmp_path / "other"))
    first = found["first_difference"]
    text = encoded[first["prompt"]]
    if first["position"] < len(text):
        choices = [
            int(
                merge(run.graphdef, run.params)(jax.numpy.asarray(text)[None])[0][
                    first["position"]
                ].argmax()
            )
            for run in (ours, theirs)
        ]
        assert choices == [first["a"], first["b"]]
    capsys.readouterr()


def test_what_cannot_be_compared_is_refused(run_dir, tmp_path, capsys):
    (tmp_path / "empty.txt").write_text("\n")
    for words, said in (
        ([str(tmp_path / "nowhere"), str(run_dir)], "nowhere is not there"),
        ([str(run_dir), str(tmp_path)], "transformers cannot load"),
        ([str(run_dir), str(run_dir), "--prompts", str(tmp_path / "no")], "cannot be read"),
        ([str(run_dir), str(run_dir), "--prompts", str(tmp_path / "empty.txt")], "no line"),
        ([str(run_dir), str(run_dir), "--tokens", "0"], "tokens 0"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(["compare", *words])
        err = capsys.readouterr().err
        assert (stop.value.code, len(err.splitlines())) == (2, 1), err
        assert said in err


@pytest.mark.parametrize("family", FAMILIES)
def test_defaults_are_those_of_the_class(family):
    """A config.json without a key means what transformers takes then."""
    theirs = transformers.AutoConfig.for_model(family).to_dict()
    given = {"scale_embedding": True} if family == "marian" else {}  # theirs is not to be had
    assert read_settings(FAMILIES[family], theirs | given) == read_settings(FAMILIES[family], given)
