"""A GGUF file, llama.cpp's format, read as the Hugging Face model that it was made from.

Its metadata become the keys of a config.json, its tensors have their names in transformers, so that
the tables of `weights/families/` read both. Quantised tensors are dequantised to float32 as they
are asked for. Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tokenizers
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence, Split

from jaxformer.data.tokenizer import BPETokenizer
from jaxformer.errors import UserError, perhaps
from jaxformer.extras import require_extra
from jaxformer.weights.files import LazyTensors, Reader
from jaxformer.weights.settings import Values


class Architecture(NamedTuple):
    """A `general.architecture`, in the words of transformers."""

    model_type: str
    keys: Mapping[str, str]
    """Metadata beneath the architecture's name, and the keys of config.json that say the same."""
    names: Mapping[str, str]
    """Beginnings of tensors' names here and there; N is the number of a layer."""
    transposed: tuple[str, ...] = ()
    """Tensors whose axes are in the other order there, as Conv1D has them."""
    interleaved: Mapping[str, str] = {}
    """Tensors whose rows are permuted so that rotary pairs are neighbours, and the key of
    config.json that has their number of heads."""


_GPT2 = Architecture(
    "gpt2",
    {
        "block_count": "n_layer",
        "context_length": "n_positions",
        "embedding_length": "n_embd",
        "feed_forward_length": "n_inner",
        "attention.head_count": "n_head",
        "attention.layer_norm_epsilon": "layer_norm_epsilon",
    },
    {
        "token_embd": "transformer.wte",
        "position_embd": "transformer.wpe",
        "blk.N.attn_norm": "transformer.h.N.ln_1",
        "blk.N.attn_qkv": "transformer.h.N.attn.c_attn",
        "blk.N.attn_output": "transformer.h.N.attn.c_proj",
        "blk.N.ffn_norm": "transformer.h.N.ln_2",
        "blk.N.ffn_up": "transformer.h.N.mlp.c_fc",
        "blk.N.ffn_down": "transformer.h.N.mlp.c_proj",
        "output_norm": "transformer.ln_f",
        "output": "lm_head",
    },
    transposed=(
        "blk.N.attn_qkv.weight",
        "blk.N.attn_output.weight",
        "blk.N.ffn_up.weight",
        "blk.N.ffn_down.weight",
    ),
)
_LLAMA = Architecture(
    "llama",
    {
        "block_count": "num_hidden_layers",
        "context_length": "max_position_embeddings",
        "embedding_length": "hidden_size",
        "feed_forward_length": "intermediate_size",
        "attention.head_count": "num_attention_heads",
        "attention.head_count_kv": "num_key_value_heads",
        "attention.key_length": "head_dim",
        "attention.layer_norm_rms_epsilon": "rms_norm_eps",
        "rope.freq_base": "rope_theta",
        "vocab_size": "vocab_size",
    },
    {
        "token_embd": "model.embed_tokens",
        "blk.N.attn_norm": "model.layers.N.input_layernorm",
        "blk.N.attn_q": "model.layers.N.self_attn.q_proj",
        "blk.N.attn_k": "model.layers.N.self_attn.k_proj",
        "blk.N.attn_v": "model.layers.N.self_attn.v_proj",
        "blk.N.attn_output": "model.layers.N.self_attn.o_proj",
        "blk.N.attn_q_norm": "model.layers.N.self_attn.q_norm",
        "blk.N.attn_k_norm": "model.layers.N.self_attn.k_norm",
        "blk.N.ffn_norm": "model.layers.N.post_attention_layernorm",
        "blk.N.ffn_gate": "model.layers.N.mlp.gate_proj",
        "blk.N.ffn_up": "model.layers.N.mlp.up_proj",
        "blk.N.ffn_down": "model.layers.N.mlp.down_proj",
        "output_norm": "model.norm",
        "output": "lm_head",
    },
    interleaved={
        f"blk.N.attn_{part}.{leaf}": heads
        for part, heads in (("q", "num_attention_heads"), ("k", "num_key_value_heads"))
        for leaf in ("weight", "bias")
    },
)
ARCHITECTURES: Mapping[str, Architecture] = {
    "gpt2": _GPT2,
    "llama": _LLAMA,
    "qwen2": _LLAMA._replace(model_type="qwen2", interleaved={}),
    "qwen3": _LLAMA._replace(model_type="qwen3", interleaved={}),
}
FOLLOWING = ("rope.dimension_count", "attention.value_length")
"""Metadata that are the head width in every model that can be read here."""
QUANTISED = frozenset({
    "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K",
})  # fmt: skip
PLAIN = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "float32"}
"""Types of tensors that hold numbers, and those in which they are read."""

_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _split(digits: str) -> Any:
    words = Split(tokenizers.Regex(_WORDS % digits), behavior="isolated")
    return Sequence([words, ByteLevel(add_prefix_space=False, use_regex=False)])


PRE_TOKENIZERS: Mapping[str, Callable[[], Any]] = {
    "gpt-2": lambda: ByteLevel(add_prefix_space=False),
    "smollm": lambda: Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]),
    "llama-bpe": lambda: _split("{1,3}"),
    "qwen2": lambda: _split(""),
}
"""How a text is divided before its bytes are joined, by `tokenizer.ggml.pre`."""
_USER_DEFINED, _CONTROL = 4, 3
"""Of `tokenizer.ggml.token_type`: tokens that texts have whole, the second kind not as words."""


class GGUF(NamedTuple):
    """What a file holds; its tensors are not read."""

    values: Values
    """As a config.json has them, `model_type` among them."""
    tensors: LazyTensors
    metadata: Mapping[str, Any]


def open_gguf(path: Path) -> GGUF:
    """The metadata and tensors of a file.

    Raises:
        UserError: it is no GGUF file, is cut short, or has an architecture, metadata or a type of
            tensors that are unknown here.
    """
    require_extra("gguf", f"{path} is a GGUF file")
    import gguf

    try:
        reader = gguf.GGUFReader(path)
        metadata = {name: field.contents() for name, field in reader.fields.items()}
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(
            f"{path} is no whole GGUF file ({error}): copy or download it again"
        ) from None
    name: Any = metadata.get("general.architecture")
    if name not in ARCHITECTURES:
        raise UserError(
            f"{path} has the architecture {name!r}{perhaps(str(name), ARCHITECTURES)}, which is "
            f"unknown here: choose a model of {', '.join(ARCHITECTURES)}"
        )
    architecture, types = ARCHITECTURES[name], {}
    for tensor in reader.tensors:
        kind = tensor.tensor_type.name
        if kind not in QUANTISED and kind not in PLAIN:
            raise UserError(
                f"{path}: {tensor.name} is {kind}, which is not read here: choose a file of "
                "F32, F16, BF16 or Q8_0"
            )
        types[tensor.name] = PLAIN.get(kind, "float32")
    values = _values(path, architecture, metadata, name, types)
    readers: dict[str, Reader] = {}
    renamed = {}
    for tensor in reader.tensors:
        theirs = _renamed(tensor.name, architecture.names)
        readers[theirs] = _reader(tensor, architecture, values)
        renamed[theirs] = types[tensor.name]
    return GGUF(values, LazyTensors(readers, renamed), metadata)


def _values(
    path: Path, architecture: Architecture, metadata: Mapping[str, Any], name: str, names: Any
) -> Values:
    values: Values = {"model_type": architecture.model_type, "vocab_size": None}
    unknown, following = [], {}
    for key, value in metadata.items():
        short = key.removeprefix(f"{name}.")
        if short == key:
            continue
        if short in architecture.keys:
            values[architecture.keys[short]] = _shortest(value)
        elif short in FOLLOWING:
            following[key] = value
        else:
            unknown.append(key)
    if unknown:
        raise UserError(f"{path}: {', '.join(unknown)}: unknown here, so it cannot be read")
    if values["vocab_size"] is None:
        values["vocab_size"] = len(metadata.get("tokenizer.ggml.tokens", ()))
    if architecture.model_type == "gpt2":
        return values | {"activation_function": "gelu_new", "embd_pdrop": 0.0, "resid_pdrop": 0.0}
    if "head_dim" not in values and isinstance(width := values.get("hidden_size"), int):
        values["head_dim"] = width // values.get("num_attention_heads", 1)
    for key, value in following.items():
        if value != values.get("head_dim"):
            raise UserError(f"{path}: {key} is {value}, not the head width: it cannot be read")
    values["tie_word_embeddings"] = "output.weight" not in names
    if architecture.model_type == "llama":
        values["attention_bias"] = "blk.0.attn_q.bias" in names
        values["mlp_bias"] = "blk.0.ffn_up.bias" in names
    return values


def _shortest(value: Any) -> Any:
    """1e-5 of the nearest float32, in which the file has it."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


def _renamed(name: str, names: Mapping[str, str]) -> str:
    stem, _, leaf = name.rpartition(".")
    number = re.search(r"\d+", stem)
    theirs = names.get(re.sub(r"\d+", "N", stem, count=1))
    if theirs is None:
        return name
    return f"{theirs}.{leaf}".replace(".N.", f".{number[0]}." if number else ".N.")


def _reader(tensor: Any, architecture: Architecture, values: Values) -> Reader:
    """Reads the tensor in the order of rows and axes that transformers has."""
    generic = re.sub(r"\d+", "N", tensor.name, count=1)
    heads = values.get(architecture.interleaved.get(generic, ""))

    def read() -> np.ndarray:
        from gguf import quants

        array = np.asarray(quants.dequantize(tensor.data, tensor.tensor_type))
        if generic in architecture.transposed:
            return array.T
        return array if heads is None else halves(array, heads)

    return read


def halves(rows: np.ndarray, num_heads: int) -> np.ndarray:
    """Rows of heads with rotary pairs as neighbours, to rows with the pairs in two halves."""
    return rows.reshape(num_heads, -1, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def neighbours(rows: np.ndarray, num_heads: int) -> np.ndarray:
    """The inverse of `halves`."""
    return rows.reshape(num_heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def gguf_tokenizer(path: Path, metadata: Mapping[str, Any]) -> BPETokenizer:
    """The byte-level BPE in a file.

    Raises:
        UserError: the file has none, or one of another kind.
    """
    advice = "name its tokenizer.json by --tokenizer FILE, or --tokenizer ids"
    own: dict[str, Any] = {
        key: metadata.get(f"tokenizer.ggml.{key}")
        for key in ("model", "pre", "tokens", "merges", "token_type")
    }
    if own["model"] != "gpt2":
        raise UserError(f"{path} has a tokenizer of the kind {own['model']!r}: {advice}")
    if own["pre"] not in PRE_TOKENIZERS:
        raise UserError(f"{path} divides texts by {own['pre']!r}, unknown here: {advice}")
    if not own["tokens"]:
        raise UserError(f"{path} has no tokens: {advice}")
    tokens, types = own["tokens"], own["token_type"] or [1] * len(own["tokens"])
    library = tokenizers.Tokenizer(
        tokenizers.models.BPE(
            {token: index for index, token in enumerate(tokens)},
            [tuple(merge.split(" ", 1)) for merge in own["merges"] or ()],
            ignore_merges=own["pre"] == "llama-bpe",
        )
    )
    library.pre_tokenizer = PRE_TOKENIZERS[own["pre"]]()
    library.decoder = tokenizers.decoders.ByteLevel()
    if own["pre"] == "qwen2":
        library.normalizer = tokenizers.normalizers.NFC()
    whole = {_CONTROL: True, _USER_DEFINED: False}
    library.add_tokens(
        [
            tokenizers.AddedToken(token, special=whole[kind], normalized=False)
            for token, kind in zip(tokens, types, strict=True)
            if kind in whole
        ]
    )
    return BPETokenizer(library)


def kept_files(metadata: Mapping[str, Any]) -> dict[str, bytes]:
    """What the file says of chats and special tokens, as files of a Hugging Face directory."""
    tokens = metadata.get("tokenizer.ggml.tokens", ())
    ids = {
        name: metadata[f"tokenizer.ggml.{key}_token_id"]
        for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))
        if f"tokenizer.ggml.{key}_token_id" in metadata
    }
    texts = {f"{name}_token": tokens[token] for name, token in ids.items() if token < len(tokens)}
    numbers = {f"{name}_token_id": token for name, token in ids.items()}
    files = {
        "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", **texts},
        "generation_config.json": numbers,
    }
    kept = {name: f"{json.dumps(values, indent=2)}\n".encode() for name, values in files.items()}
    if template := metadata.get("tokenizer.chat_template"):
        kept["chat_template.jinja"] = template.encode()
    return kept
