"""A run as a GGUF file, which llama.cpp and what is built on it read.

The tables that read such a file write it (`gguf_files.py`). What was written is read again: by our
own import, which must give the same settings and, of float32, the same parameters to the bit, and
by transformers, where it is installed, on the same tokens. Only then has the file its name.
"""

import dataclasses
import importlib.util
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxformer.atomic import atomic_write
from jaxformer.errors import UserError
from jaxformer.exchange.exporting import (
    Exported,
    check_tokenizer,
    family_for,
    missing_tool,
    notes_of,
    specials_of,
    verified_rows,
    with_biases,
)
from jaxformer.exchange.foreign import Options, gguf_model
from jaxformer.exchange.gguf_files import (
    ARCHITECTURES,
    FOLLOWING,
    PRE_TOKENIZERS,
    Architecture,
    neighbours,
)
from jaxformer.exchange.importing import ORIGIN, foreign_params, require_new
from jaxformer.exchange.sides import RunSide, TransformersSide
from jaxformer.exchange.tokenizers import as_library
from jaxformer.extras import require_extra
from jaxformer.models.functional import abstract_model, flat_params
from jaxformer.run.load import Run
from jaxformer.weights.convert import to_torch
from jaxformer.weights.settings import Values

GGUFType = Literal["float32", "bfloat16", "float16", "q8_0", "q4_0"]
TYPES: Mapping[GGUFType, str] = {
    "float32": "F32",
    "bfloat16": "BF16",
    "float16": "F16",
    "q8_0": "Q8_0",
    "q4_0": "Q4_0",
}
"""Our names of types, and the format's."""
WIDE = ("position_embd.weight",)
"""Matrices that stay float32 in every file, as vectors do."""
_NORMAL, _CONTROL, _UNUSED = 1, 3, 5


def export_gguf(
    run: Run, target: Path, dtype: GGUFType = "float32", *, verify: bool = True
) -> Exported:
    """Write the file, whole or not at all.

    Raises:
        UserError: there is something already, the format has no words for the model or for its
            tokenizer, a width does not suit the type, or what was written is another model to one
            of its readers.
    """
    require_extra("gguf", "--format gguf")
    require_new(target)
    family, settings = family_for(run)
    name = next((n for n, a in ARCHITECTURES.items() if a.model_type == family.model_type), None)
    if name is None:
        raise UserError(
            f"{run.directory} is a {family.model_type}, which is not written as GGUF: choose "
            "--format hf"
        )
    tensors = to_torch(with_biases(run), family.table_of(run.config.model))
    vocabulary = tokenizer_metadata(run)
    notes = [*notes_of(run)]
    with atomic_write(target) as file:
        path = Path(file.name)
        _write(path, name, settings, vocabulary, tensors, TYPES[dtype])
        rounded = read_back(run, path, exact=dtype == "float32")
        found = None
        lacking = missing_tool() or missing_accelerate()
        if verify and lacking:
            notes.append(lacking)
        elif verify:
            ours, theirs = RunSide(dataclasses.replace(run, **rounded)), TransformersSide(path)
            check_tokenizer(run, theirs)
            found = verified_rows(ours, theirs)
    return Exported(found, tuple(notes))


def _write(
    path: Path,
    name: str,
    settings: Values,
    vocabulary: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    kind: str,
) -> None:
    """The metadata and tensors of a model with these settings and tensors of transformers."""
    import gguf

    architecture, wanted = ARCHITECTURES[name], gguf.GGMLQuantizationType[kind]
    plain = gguf.GGMLQuantizationType.F32
    writer = gguf.GGUFWriter(path, name)
    metadata = {key: settings.get(theirs) for key, theirs in architecture.keys.items()}
    metadata |= {key: settings["head_dim"] for key in FOLLOWING if "head_dim" in settings}
    for key, value in metadata.items():
        if value is not None:
            add = writer.add_float32 if isinstance(value, float) else writer.add_uint32
            add(f"{name}.{key}", value)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for key, value in vocabulary.items():
        _add(writer, f"tokenizer.{key}", value)
    for theirs, tensor in _own(tensors, architecture, settings):
        own = plain if tensor.ndim < 2 or theirs in WIDE else wanted
        block, _ = gguf.GGML_QUANT_SIZES[own]
        if tensor.shape[-1] % block:
            raise UserError(
                f"{theirs} has rows of {tensor.shape[-1]}, which {kind} divides by {block}: choose "
                "--dtype float32, bfloat16 or float16"
            )
        wide = np.ascontiguousarray(tensor, np.float32)
        writer.add_tensor(theirs, gguf.quants.quantize(wide, own), raw_dtype=own)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add(writer: Any, key: str, value: Any) -> None:
    match value:
        case bool():
            writer.add_bool(key, value)
        case int():
            writer.add_uint32(key, value)
        case str():
            writer.add_string(key, value)
        case _:
            writer.add_array(key, value)


def _own(
    tensors: Mapping[str, np.ndarray], architecture: Architecture, settings: Values
) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors in the format's names, rows and axes; a tied output head is left out."""
    stems = {theirs: ours for ours, theirs in architecture.names.items()}
    tied = settings.get("tie_word_embeddings", True)
    for name, tensor in tensors.items():
        stem, _, leaf = name.rpartition(".")
        parts = stem.split(".")
        number = next((part for part in parts if part.isdigit()), "N")
        ours = stems[".".join("N" if part == number else part for part in parts)]
        if ours == "output" and tied:
            continue
        generic = f"{ours}.{leaf}"
        array = tensor.T if generic in architecture.transposed else tensor
        if heads := architecture.interleaved.get(generic):
            array = neighbours(array, settings[heads])
        yield generic.replace("N", number), array


def tokenizer_metadata(run: Run) -> dict[str, Any]:
    """The run's tokenizer beneath `tokenizer.`: a byte-level BPE, or bytes as one without merges.

    Raises:
        UserError: it is another.
    """
    library = as_library(run.tokenizer)
    rules = {} if library is None else json.loads(library.to_str())
    own = rules.get("model", {})
    pre = own.get("type") == "BPE" and _pre_of(rules, own)
    if not pre:
        raise UserError(
            f"the tokenizer of {run.directory} is no byte-level BPE that GGUF has a word for, such "
            f"as {', '.join(PRE_TOKENIZERS)}: choose --format hf"
        )
    size = run.config.model.vocab_size
    tokens = {index: token for token, index in own["vocab"].items()}
    whole = {added["id"]: added for added in rules["added_tokens"]}
    tokens |= {index: added["content"] for index, added in whole.items()}
    types = [
        _UNUSED if index not in tokens else _CONTROL if index in whole else _NORMAL
        for index in range(size)
    ]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in own["merges"]]
    found = {
        "ggml.model": "gpt2",
        "ggml.pre": pre,
        "ggml.tokens": [tokens.get(index, f"[PAD{index}]") for index in range(size)],
        "ggml.token_type": types,
        **({"ggml.merges": merges} if merges else {}),
        "ggml.add_bos_token": False,
    }
    named = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding"}
    for name, token in specials_of(run).items():
        found[f"ggml.{named[name]}_token_id"] = token
    template = run.directory / ORIGIN / "chat_template.jinja"
    if template.is_file():
        found["chat_template"] = template.read_text(encoding="utf-8")
    return found


def _pre_of(rules: Mapping[str, Any], own: Mapping[str, Any]) -> str | None:
    """The word for how a tokenizer divides texts; without merges all are alike."""
    if not own["merges"]:
        return "gpt-2"
    given = _division(rules["pre_tokenizer"])
    for name, build in PRE_TOKENIZERS.items():
        if _division(json.loads(build().__getstate__())) == given:
            return name
    return None


def _division(rules: Any) -> Any:
    """A pre-tokenizer without what only offsets depend on."""
    if isinstance(rules, dict):
        return {key: _division(value) for key, value in rules.items() if key != "trim_offsets"}
    return [_division(rule) for rule in rules] if isinstance(rules, list) else rules


def read_back(run: Run, path: Path, *, exact: bool) -> dict[str, Any]:
    """The written model as our import reads it: its graph definition and parameters.

    Raises:
        UserError: it has other settings, or other parameters where they are to be exact.
    """
    foreign = gguf_model(path, Options(dtype=run.config.model.dtype))
    like: dict[str, Any] = {"scan_layers": False, "dropout_rate": 0.0, "attention_dropout": True}
    like["dtype"] = run.config.model.dtype
    found: Any = dataclasses.replace(foreign.model, **like)
    ours: Any = dataclasses.replace(run.config.model, **like)
    training = {"attention", "remat", "init_std", "initializer", "use_bias"}
    differing = [
        field.name
        for field in dataclasses.fields(ours)
        if getattr(found, field.name) != getattr(ours, field.name) and field.name not in training
    ]
    if differing:
        names = ", ".join(f"model.{name.replace('_', '-')}" for name in differing)
        raise UserError(f"GGUF has no words for {names} of {run.directory}: choose --format hf")
    graphdef, shapes = abstract_model(run.spec.model, found)
    params = foreign_params(path, foreign, shapes)
    expected = flat_params(with_biases(run))
    for name, array in flat_params(params).items():
        if exact and not np.array_equal(np.asarray(array), expected[name], equal_nan=True):
            raise UserError(f"{path}: {name} is read otherwise than it was written")
    return {"graphdef": graphdef, "params": params}


def missing_accelerate() -> str:
    """Why transformers cannot read a GGUF file; empty if it can."""
    if importlib.util.find_spec("accelerate") is not None:
        return ""
    return "not verified by transformers: accelerate is not installed"
