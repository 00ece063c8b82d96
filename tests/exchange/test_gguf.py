"""GGUF files, written here as llama.cpp's converter writes them: by its names and permutation."""

import dataclasses
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type

from jaxformer.cli.main import main
from jaxformer.config import (
    DecoderConfig,
    DecoderLanguageConfig,
    GPTConfig,
    LanguageConfig,
    RopeScaling,
)
from jaxformer.data.tokenizer import BPETokenizer, ByteTokenizer
from jaxformer.errors import UserError
from jaxformer.exchange.exporting import export_huggingface
from jaxformer.exchange.exporting_gguf import TYPES, export_gguf, tokenizer_metadata
from jaxformer.exchange.foreign import Options
from jaxformer.exchange.gguf_files import PLAIN, QUANTISED, gguf_tokenizer, open_gguf
from jaxformer.exchange.importing import import_model
from jaxformer.models.functional import flat_params
from jaxformer.run.load import Run, load_run
from jaxformer.weights import huggingface
from jaxformer.weights.files import load_tensors
from tests.runs import save_run

TEXT = "ein Wort und noch ein Wort, 123 zwei\n\tdrei — 漢字, it's\n" * 40
WIDTHS: dict[str, Any] = {"width": 64, "num_heads": 4, "mlp_width": 32, "num_layers": 2}
HEADS: dict[str, Any] = WIDTHS | {"num_kv_heads": 2, "head_width": 16, "rope_base": 1e6}


def decoder(vocab_size: int, **options: Any) -> DecoderLanguageConfig:
    model = DecoderConfig(vocab_size=vocab_size, context_length=24, **HEADS, **options)
    return DecoderLanguageConfig(model=model)


def config(name: str, vocab_size: int) -> Any:
    match name:
        case "gpt2":
            model = GPTConfig(vocab_size=vocab_size, context_length=24, **WIDTHS)
            return LanguageConfig(model=model)
        case "llama":
            return decoder(vocab_size)
        case "llama, untied":
            return decoder(vocab_size, tie_embeddings=False)
        case "qwen2":
            return decoder(vocab_size, attention_bias=True)
        case _:
            return decoder(vocab_size, qk_norm=True, tie_embeddings=False)


NAMES = ("gpt2", "llama", "llama, untied", "qwen2", "qwen3")


@pytest.fixture(scope="module")
def tokenizer() -> BPETokenizer:
    return BPETokenizer.train([TEXT], 270)


@pytest.fixture(scope="module")
def models(tmp_path_factory, tokenizer) -> dict[str, tuple[Run, Path]]:
    """A run and its Hugging Face directory, by name."""
    place, found = tmp_path_factory.mktemp("models"), {}
    for name in NAMES:
        run = load_run(save_run(place / name, config(name, tokenizer.vocab_size), tokenizer))
        export_huggingface(run, place / f"{name}-hf", verify=False)
        found[name] = run, place / f"{name}-hf"
    return found


def permute(rows: np.ndarray, num_heads: int) -> np.ndarray:
    """Llama's rows in llama.cpp's order, as its convert_hf_to_gguf.py says it."""
    halves = rows.reshape(num_heads, 2, rows.shape[0] // num_heads // 2, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def write(
    directory: Path, path: Path, kind: Type = Type.F32, pre: str = "gpt-2", **more: Any
) -> Path:
    """A Hugging Face directory as a GGUF file."""
    values = huggingface.read_json(directory / "config.json")
    name = more.pop("architecture", values["model_type"])
    writer = gguf.GGUFWriter(path, name)
    arch = {text: key for key, text in gguf.MODEL_ARCH_NAMES.items()}[values["model_type"]]
    blocks = values.get("num_hidden_layers", values.get("n_layer"))
    names = gguf.get_tensor_name_map(arch, blocks)
    writer.add_block_count(blocks)
    if name == "gpt2":
        writer.add_context_length(values["n_positions"])
        writer.add_embedding_length(values["n_embd"])
        writer.add_feed_forward_length(values["n_inner"])
        writer.add_head_count(values["n_head"])
        writer.add_layer_norm_eps(values["layer_norm_epsilon"])
    else:
        writer.add_context_length(values["max_position_embeddings"])
        writer.add_embedding_length(values["hidden_size"])
        writer.add_feed_forward_length(values["intermediate_size"])
        writer.add_head_count(values["num_attention_heads"])
        writer.add_head_count_kv(values["num_key_value_heads"])
        writer.add_layer_norm_rms_eps(values["rms_norm_eps"])
        writer.add_key_length(values["head_dim"])
        writer.add_value_length(values["head_dim"])
        writer.add_rope_dimension_count(values["head_dim"])
        writer.add_rope_freq_base(values["rope_theta"])
    library = huggingface.read_json(directory / "tokenizer.json")["model"]
    writer.add_tokenizer_model(more.pop("tokenizer_model", "gpt2"))
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(sorted(library["vocab"], key=library["vocab"].get))
    writer.add_token_merges([" ".join(pair) for pair in library["merges"]])
    writer.add_token_types([1] * len(library["vocab"]))
    writer.add_chat_template("{{ messages }}")
    for key, value in more.items():
        writer.add_float32(key, value)
    for theirs, tensor in load_tensors(directory / "model.safetensors").items():
        if theirs == "lm_head.weight" and values["tie_word_embeddings"]:
            continue
        if name == "gpt2" and any(part in theirs for part in ("c_attn.w", "c_proj.w", "c_fc.w")):
            tensor = tensor.T
        if name == "llama" and any(part in theirs for part in ("q_proj", "k_proj")):
            heads = "num_attention_heads" if "q_proj" in theirs else "num_key_value_heads"
            tensor = permute(tensor, values[heads])
        own = Type.F32 if tensor.ndim < 2 else kind
        data = gguf.quants.quantize(np.ascontiguousarray(tensor), own)
        writer.add_tensor(names.get_name(theirs, (".weight", ".bias")), data, raw_dtype=own)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("name", NAMES)
def test_a_file_is_the_model_that_it_was_made_of(models, tmp_path, name):
    run, directory = models[name]
    path = write(directory, tmp_path / "model.gguf")
    import_model(path, tmp_path / "run", Options())
    found = load_run(tmp_path / "run")
    # Without dropout nothing depends on where it is.
    assert dataclasses.replace(found.config.model, attention_dropout=True) == run.config.model
    ours, theirs = flat_params(run.params), flat_params(found.params)
    assert ours.keys() == theirs.keys()
    for leaf in ours:
        np.testing.assert_array_equal(theirs[leaf], ours[leaf])
    assert found.tokenizer.encode(TEXT).tolist() == run.tokenizer.encode(TEXT).tolist()
    assert (tmp_path / "run" / "origin" / "chat_template.jinja").read_text() == "{{ messages }}"


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1"])
def test_short_types_are_read_as_the_numbers_that_they_stand_for(models, tmp_path, kind):
    run, directory = models["qwen2"]
    import_model(write(directory, tmp_path / "model.gguf", Type[kind]), tmp_path / "run", Options())
    ours, theirs = flat_params(run.params), flat_params(load_run(tmp_path / "run").params)
    for leaf, array in ours.items():
        expected = np.asarray(array)
        if expected.ndim == 2:  # tensors are (out, in), and quantised along the inputs
            rows = expected if leaf == "embed/embedding" else np.ascontiguousarray(expected.T)
            short = gguf.quants.quantize(rows, Type[kind])
            expected = gguf.quants.dequantize(short, Type[kind]).astype(np.float32)
            expected = expected if leaf == "embed/embedding" else expected.T
        np.testing.assert_array_equal(theirs[leaf], expected)


@pytest.mark.parametrize("kind", sorted({*QUANTISED, *PLAIN} - {"F64"}))
def test_every_type_can_be_dequantised(kind):
    block, size = gguf.GGML_QUANT_SIZES[Type[kind]]
    zeros = np.zeros((1, size), np.uint8)
    if kind in PLAIN:
        zeros = zeros.view({"F32": np.float32, "F16": np.float16}.get(kind, np.uint8))
    assert gguf.quants.dequantize(zeros, Type[kind]).shape == (1, block)


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "llama-bpe", "qwen2"])
def test_a_text_is_divided_as_the_file_says(models, tmp_path, pre):
    path = write(models["llama"][1], tmp_path / "model.gguf", pre=pre)
    tokenizer = gguf_tokenizer(path, open_gguf(path).metadata)
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT
    pieces = tokenizer._library.pre_tokenizer.pre_tokenize_str("a 1234's")
    digits = {"gpt-2": "Ġ1234", "smollm": "1", "llama-bpe": "123", "qwen2": "1"}[pre]
    assert digits in [piece for piece, _ in pieces]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"architecture": "mamba"}, ("mamba", "llama")),
        ({"llama.rope.scaling.factor": 2.0}, ("llama.rope.scaling.factor",)),
        ({"tokenizer_model": "llama"}, ("llama", "--tokenizer")),
        ({"pre": "tekken"}, ("tekken", "--tokenizer")),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(models, tmp_path, change, words, capsys):
    path = write(models["llama"][1], tmp_path / "model.gguf", **change)
    with pytest.raises(SystemExit) as ended:
        main(["import", str(path), str(tmp_path / "run")])
    assert ended.value.code == 2
    assert not (tmp_path / "run").exists()
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert all(word in line for word in words)


@pytest.mark.parametrize("keep", [0, 3, 100, -100])
def test_a_file_that_is_cut_short_is_refused(models, tmp_path, keep):
    path = write(models["llama"][1], tmp_path / "model.gguf")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"no whole GGUF file"):
        import_model(path, tmp_path / "run", Options())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", NAMES)
def test_a_run_is_written_as_the_converter_writes_it(models, tmp_path, name):
    run, directory = models[name]
    export_gguf(run, tmp_path / "ours.gguf", verify=False)
    theirs = gguf.GGUFReader(write(directory, tmp_path / "theirs.gguf"))
    ours = gguf.GGUFReader(tmp_path / "ours.gguf")
    wanted = {tensor.name: tensor.data for tensor in theirs.tensors}
    found = {tensor.name: tensor.data for tensor in ours.tensors}
    assert found.keys() == wanted.keys()
    for tensor in found:
        np.testing.assert_array_equal(found[tensor], wanted[tensor])
    for key in {*theirs.fields} - {"GGUF.kv_count", "tokenizer.chat_template"}:
        assert ours.fields[key].contents() == theirs.fields[key].contents(), key


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "q8_0", "q4_0"])
def test_an_export_of_a_short_type_is_what_is_imported(models, tmp_path, dtype):
    run, directory = models["llama, untied"]
    export_gguf(run, tmp_path / "ours.gguf", dtype, verify=False)
    write(directory, tmp_path / "theirs.gguf", Type[TYPES[dtype]])
    ours, theirs = (open_gguf(tmp_path / f"{side}.gguf").tensors for side in ("ours", "theirs"))
    assert {*ours} == {*theirs}
    for name, tensor in ours.items():
        np.testing.assert_array_equal(tensor, theirs[name])


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "llama-bpe", "qwen2"])
def test_the_division_of_texts_goes_out_as_it_came_in(models, tmp_path, pre):
    path = write(models["llama"][1], tmp_path / "model.gguf", pre=pre)
    import_model(path, tmp_path / "run", Options())
    run = load_run(tmp_path / "run")
    assert tokenizer_metadata(run)["ggml.pre"] == pre
    assert tokenizer_metadata(run)["chat_template"] == "{{ messages }}"


def test_tokens_of_bytes_go_out_as_a_bpe_without_merges(tmp_path):
    run = load_run(save_run(tmp_path / "run", config("gpt2", 260), ByteTokenizer()))
    export_gguf(run, tmp_path / "model.gguf", verify=False)
    found = gguf_tokenizer(path := tmp_path / "model.gguf", open_gguf(path).metadata)
    assert found.encode(TEXT).tolist() == run.tokenizer.encode(TEXT).tolist()
    assert found.decode(found.encode(TEXT)) == TEXT


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sliding_window": 8}, ("mistral", "--format hf")),
        ({"rope_scaling": RopeScaling(kind="linear", factor=2.0)}, ("rope-scaling", "--format hf")),
    ],
)
def test_what_the_format_has_no_words_for_is_refused(tmp_path, tokenizer, options, words):
    run = load_run(save_run(tmp_path / "run", decoder(tokenizer.vocab_size, **options), tokenizer))
    with pytest.raises(UserError) as refused:
        export_gguf(run, tmp_path / "model.gguf")
    assert all(word in str(refused.value) for word in words)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_rows_that_the_type_does_not_divide_are_refused(tmp_path, tokenizer):
    narrow = decoder(tokenizer.vocab_size)
    model = dataclasses.replace(narrow.model, mlp_width=24)
    run = load_run(save_run(tmp_path / "run", dataclasses.replace(narrow, model=model), tokenizer))
    with pytest.raises(UserError, match=r"ffn_down.* rows of 24"):
        export_gguf(run, tmp_path / "model.gguf", "q8_0")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
