"""`jaxformer import`: what a run of another tool's model can do, and what is refused by name."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxformer import checkpoint
from jaxformer.cli.main import main
from jaxformer.config import (
    BERT_PRESETS,
    GPTConfig,
    LanguageConfig,
    MaskedDataConfig,
    MaskedLanguageConfig,
    RunConfig,
    TextPairsConfig,
    TextTranslationConfig,
    TransformerConfig,
)
from jaxformer.data.tokenizer import BPETokenizer, ByteTokenizer, Tokenizer
from jaxformer.errors import UserError
from jaxformer.exchange.exporting import export_huggingface
from jaxformer.exchange.foreign import Options
from jaxformer.exchange.importing import import_model
from jaxformer.run.load import load_run
from jaxformer.weights.files import load_tensors, save_tensors
from tests.runs import save_run

SIZES: dict[str, Any] = {
    "context_length": 11,
    "width": 10,
    "num_heads": 5,
    "mlp_width": 13,
    "num_layers": 1,
    "dropout_rate": 0.1,
}
TEXT = "ein Wort und noch ein Wort, eins zwei drei\n" * 40
CONFIGS: dict[str, RunConfig] = {
    "gpt2": LanguageConfig(model=GPTConfig(vocab_size=257, **SIZES)),
    "bert": MaskedLanguageConfig(
        model=dataclasses.replace(BERT_PRESETS["toy"], vocab_size=257, **SIZES),
        data=MaskedDataConfig(mask_token=256),
    ),
    "marian": TextTranslationConfig(
        model=TransformerConfig(vocab_size=259, **SIZES),
        data=TextPairsConfig(special_tokens=(256, 256, 0)),
    ),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """A directory of each family, as other tools read it, and the run that it was made of."""
    place = tmp_path_factory.mktemp("models")
    for name, config in CONFIGS.items():
        run = load_run(save_run(place / f"{name}-run", config, ByteTokenizer()))
        export_huggingface(run, place / name, verify=False)
    return place


@pytest.fixture
def model(models, tmp_path, request) -> Path:
    """A copy of GPT-2's directory, or that of the parameter's."""
    name = getattr(request, "param", "gpt2")
    return Path(shutil.copytree(models / name, tmp_path / "model"))


def options(name: str) -> Options:
    return Options(mask_token=256 if name == "bert" else None)


@pytest.mark.parametrize("name", CONFIGS)
def test_what_was_exported_is_imported_to_the_bit(models, tmp_path, name):
    import_model(models / name, tmp_path / "run", options(name))
    ours, found = load_run(models / f"{name}-run"), load_run(tmp_path / "run")
    jax.tree.map(np.testing.assert_array_equal, found.params, ours.params)
    assert found.step == 0
    assert found.data_fingerprint is None
    alike = {"initializer", "init_std"}  # of no meaning to given weights
    for field in dataclasses.fields(ours.config.model):
        if field.name not in alike:
            ours_, theirs = (getattr(run.config.model, field.name) for run in (ours, found))
            assert ours_ == theirs, field.name
    text = "naïve 漢字\n"
    assert found.tokenizer.encode(text).tolist() == ours.tokenizer.encode(text).tolist()
    assert found.tokenizer.decode(found.tokenizer.encode(text)) == text
    if name == "marian":
        assert dataclasses.astuple(found.specials) == (256, 256, 0)
        assert found.encode_source("a").tolist() == [97, 0]


def test_the_optimizer_is_not_there_and_nothing_else_is_beside_the_run(models, tmp_path):
    import_model(models / "gpt2", tmp_path / "run")
    assert checkpoint.read_metadata(tmp_path / "run" / "checkpoints").items.keys() == {"params"}
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_commands_work_on_imported_runs(models, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAXFORMER_CACHE", str(tmp_path / "cache"))
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")

    def output(*words: str) -> str:
        main([*words])
        return capsys.readouterr().out

    for name in CONFIGS:
        words = ["--mask-token", "256"] if name == "bert" else []
        assert (
            f"jaxformer {'evaluate' if name == 'bert' else 'sample'}"
            in output("import", str(models / name), name, *words)
            or name == "marian"
        )
    assert output("sample", "gpt2", "--prompt", "ein", "--max-new-tokens", "3").startswith("ein")
    for name in ("gpt2", "bert"):
        main(["evaluate", name, "--data.path", "text.txt", "--json", "f.json"])
        figures = json.loads((tmp_path / "f.json").read_text())
        assert (figures["step"], figures["split"]) == (0, "other")
        assert figures["loss"] == pytest.approx(np.log(257), rel=0.02)
        assert figures["tokens"] == len(TEXT) - 1 if name == "gpt2" else figures["tokens"] < 400
    capsys.readouterr()
    translated = load_run("marian").translate(["ein Wort", ""])
    assert translated[1] == ""


def change(**values: Any) -> Callable[[Path], None]:
    """Change, or by ... remove, keys of config.json."""

    def write(model: Path) -> None:
        path = model / "config.json"
        found = json.loads(path.read_text()) | values
        path.write_text(json.dumps({k: v for k, v in found.items() if v is not ...}))

    return write


def tensors(edit: Callable[[dict[str, np.ndarray]], Any]) -> Callable[[Path], None]:
    """Change the tensors."""

    def write(model: Path) -> None:
        found = load_tensors(model / "model.safetensors")
        edit(found)
        save_tensors(found, model / "model.safetensors")

    return write


def truncated(model: Path) -> None:
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-5])


def pickled(model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")


def without_tokenizer(model: Path) -> None:
    (model / "tokenizer.json").unlink()
    (model / "source.spm").touch()


def half_an_index(model: Path) -> None:
    """A folder of shards beside another set of weights: the index alone decides."""
    text = json.dumps({"weight_map": {"transformer.wte.weight": "model.safetensors"}})
    (model / "model.safetensors.index.json").write_text(text)


WPE, NORM = "transformer.wpe.weight", "transformer.ln_f.bias"
REFUSED: dict[str, tuple[Callable[[Path], Any], list[str]]] = {
    "no config": (lambda model: (model / "config.json").unlink(), ["config.json cannot be read"]),
    "no JSON": (lambda model: (model / "config.json").write_text("{"), ["is not JSON"]),
    "no model_type": (change(model_type=...), ["no model_type", "gpt2, bert, marian"]),
    "unknown model_type": (change(model_type="gpt3"), ["'gpt3'", "gpt2, bert, marian"]),
    "unknown key": (change(rope_theta=1e4, moe=2), ["moe, rope_theta", "--ignore moe"]),
    "other function": (
        change(scale_attn_by_inverse_layer_idx=True, activation_function="silu"),
        ["scale_attn_by_inverse_layer_idx True", "activation_function 'silu'", "'gelu_new'"],
    ),
    "other type": (change(n_embd="10"), ["n_embd '10'", "int"]),
    "impossible": (change(n_head=3), ["num-heads 3"]),
    "truncated": (truncated, ["model.safetensors", "damaged"]),
    "pickled": (pickled, ["no model.safetensors", "pytorch_model.bin is a pickle"]),
    "other shape": (change(n_embd=20), ["transformer.wte.weight is (257, 10), not (257, 20)"]),
    "transposed": (
        tensors(lambda t: t.update({WPE: t[WPE].T.copy()})),
        [f"{WPE} is (10, 11), not (11, 10)", "look transposed"],
    ),
    "unmapped": (
        tensors(lambda t: t.update({"score.weight": np.ones(3, np.float32)})),
        ["score.weight has no leaf"],
    ),
    "missing": (tensors(lambda t: t.pop(NORM)), [f"norm/bias needs {NORM}, which is missing"]),
    "untied": (
        tensors(lambda t: t.update({"lm_head.weight": t["transformer.wte.weight"] + 1})),
        ["lm_head.weight differs from transformer.wte.weight"],
    ),
    "integers": (
        tensors(lambda t: t.update({NORM: np.ones(10, np.int8)})),
        [f"{NORM} is int8", "perhaps quantized"],
    ),
    "float64": (
        tensors(lambda t: t.update({NORM: t[NORM].astype(np.float64)})),
        [f"{NORM}", "--dtype float64"],
    ),
    "index": (half_an_index, ["needs", "which is missing"]),
    "no tokenizer": (without_tokenizer, ["source.spm is one of SentencePiece", "--tokenizer ids"]),
    "small vocabulary": (change(vocab_size=200), ["knows 256 tokens", "200"]),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_what_is_not_to_be_had_is_refused_by_its_name_in_one_line(model, tmp_path, fault, capsys):
    write, words = REFUSED[fault]
    write(model)
    with pytest.raises(SystemExit) as stop:
        main(["import", str(model), str(tmp_path / "run")])
    out, err = capsys.readouterr()
    assert (stop.value.code, out, len(err.splitlines())) == (2, "", 1)
    for word in words:
        assert word in err
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("model", "write", "words"),
    [
        ("bert", change(position_embedding_type="relative_key"), ["'relative_key'", "'absolute'"]),
        ("bert", change(is_decoder=True), ["is_decoder True"]),
        ("bert", lambda model: None, ["no [MASK]", "--mask-token"]),
        ("marian", change(decoder_layers=2), ["decoder_layers 2", "encoder_layers 1"]),
        ("marian", change(scale_embedding=...), ["scale_embedding False", "True"]),
        ("marian", change(eos_token_id=[0, 1]), ["eos_token_id [0, 1]"]),
        ("marian", change(share_encoder_decoder_embeddings=False), ["share_encoder_decoder"]),
        ("marian", change(activation_function="swish"), ["'swish'"]),
        (
            "marian",
            tensors(lambda t: t.update({"final_logits_bias": t["final_logits_bias"] + 1})),
            ["final_logits_bias has no leaf"],
        ),
    ],
    indirect=["model"],
)  # fmt: skip
def test_other_families_refuse_by_name_too(model, write, words, tmp_path):
    write(model)
    with pytest.raises(UserError) as refused:
        import_model(model, tmp_path / "run")
    for word in words:
        assert word in str(refused.value)
    assert not (tmp_path / "run").exists()


def test_a_key_that_the_user_knows_to_be_harmless_is_ignored(model, tmp_path):
    change(moe=2)(model)
    import_model(model, tmp_path / "run", Options(ignore=["moe"]))
    assert load_run(tmp_path / "run").step == 0


def test_defaults_of_the_class_hold_for_keys_that_are_absent(model, tmp_path):
    """A file holds only what differs from them: GPT-2 has its epsilon and its activation."""
    change(layer_norm_epsilon=..., activation_function=..., resid_pdrop=...)(model)
    import_model(model, tmp_path / "run")
    found = load_run(tmp_path / "run").config.model
    assert (found.norm_epsilon, found.activation, found.dropout_rate) == (1e-5, "gelu_tanh", 0.1)


@pytest.mark.parametrize("fill", ["file", "directory", "link"])
def test_nothing_that_is_there_is_overwritten(models, tmp_path, fill):
    target = tmp_path / "run"
    if fill == "file":
        target.write_text("mine")
    elif fill == "directory":
        (target / "mine").mkdir(parents=True)
    else:
        target.symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="is there already"):
        import_model(models / "gpt2", target)
    assert fill != "file" or target.read_text() == "mine"
    run = load_run(models / "gpt2-run")
    with pytest.raises(UserError, match="is there already"):
        export_huggingface(run, target, verify=False)


def bpe() -> Tokenizer:
    return BPETokenizer.train([TEXT], 270)


def test_a_vocabulary_and_merges_are_a_tokenizer_too(model, tmp_path):
    tokenizer = bpe()
    rules = json.loads(tokenizer.to_json())["model"]
    (model / "tokenizer.json").unlink()
    (model / "vocab.json").write_text(json.dumps(rules["vocab"]))
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in rules["merges"]]
    (model / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges))
    ids = [i for i in tokenizer.encode("ein Wort").tolist() if i < 257]
    change(vocab_size=tokenizer.vocab_size)(model)
    grow = tokenizer.vocab_size - 257

    def pad(found: dict[str, np.ndarray]) -> None:
        rows = found["transformer.wte.weight"]
        found["transformer.wte.weight"] = np.pad(rows, ((0, grow), (0, 0)))

    tensors(pad)(model)
    import_model(model, tmp_path / "run")
    found = load_run(tmp_path / "run").tokenizer
    assert found.encode("ein Wort").tolist() == tokenizer.encode("ein Wort").tolist()
    assert set(ids) <= set(found.encode("ein Wort").tolist())


def test_the_pieces_of_bert_are_a_tokenizer_too(models, tmp_path):
    model = Path(shutil.copytree(models / "bert", tmp_path / "model"))
    (model / "tokenizer.json").unlink()
    (model / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nein\nwort\n##e\n")
    import_model(model, tmp_path / "run")
    run = load_run(tmp_path / "run")
    assert run.tokenizer.encode("Ein worte").tolist() == [5, 6, 7]
    assert run.config.data.mask_token == 4


@pytest.mark.slow
def test_other_runs_begin_with_an_imported_one(models, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("JAXFORMER_CACHE", str(tmp_path / "cache"))
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    import_model(models / "gpt2", tmp_path / "run")
    words = [
        "--config",
        str(tmp_path / "run" / "config.json"),
        "--init-from",
        str(tmp_path / "run"),
    ]
    words += ["--data.path", str(tmp_path / "text.txt"), "--steps", "2", "--batch-size", "8"]
    main(["train", "gpt_char", "--run-dir", str(tmp_path / "tuned"), *words])
    assert "begins with the weights of" in capsys.readouterr().out
    assert load_run(tmp_path / "tuned").step == 2
