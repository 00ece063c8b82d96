"""A model of another tool, opened: its config, its tokenizer, and its tensors, which are not read.

A directory with a config.json is one of Hugging Face, a file that ends in .gguf one of llama.cpp,
one that ends in .pt a checkpoint of nanoGPT.
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Literal

import tokenizers

from jaxformer.config import (
    RUN_CONFIGS,
    DataConfig,
    MaskedDataConfig,
    ModelConfig,
    RunConfig,
    TextPairsConfig,
)
from jaxformer.data.tokenizer import BPETokenizer, IdTokenizer, Tokenizer, load_tokenizer
from jaxformer.errors import UserError
from jaxformer.exchange import nanogpt
from jaxformer.exchange.gguf_files import gguf_tokenizer, kept_files, open_gguf
from jaxformer.tasks.kinds import kind_of
from jaxformer.weights import huggingface
from jaxformer.weights.convert import Table
from jaxformer.weights.files import LazyTensors
from jaxformer.weights.settings import Values, read_settings

IDS = "ids"
"""The tokenizer that needs no file: the text of a token is its number."""
KEPT = ("generation_config.json", "tokenizer_config.json", "special_tokens_map.json",
        "chat_template.jinja")  # fmt: skip
"""Files of a Hugging Face directory that a run keeps beside its own, to be exported again."""


@dataclasses.dataclass(frozen=True)
class Foreign:
    """A model of another tool."""

    kind: str
    """Of the run that it becomes."""
    model: ModelConfig
    table: Table
    tensors: LazyTensors
    tokenizer: Tokenizer
    data: Callable[[str], Any]
    """The settings of a run's data, given the path of its tokenizer."""
    kept: Mapping[str, bytes] = dataclasses.field(default_factory=dict)
    """Further files, by their names."""

    def config(self, tokenizer_path: Path) -> RunConfig:
        """The configuration of the run that it becomes."""
        config = RUN_CONFIGS[self.kind](model=self.model, data=self.data(str(tokenizer_path)))
        needed = self.tokenizer.vocab_size + kind_of(config).num_specials(config)
        if needed > self.model.vocab_size:
            raise UserError(
                f"the tokenizer knows {needed:,} tokens but the model only "
                f"{self.model.vocab_size:,}: name the model's own by --tokenizer FILE"
            )
        return config


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What a model does not say of itself."""

    tokenizer: str | None = None
    """The tokenizer's file, or `ids`; by default the model's own."""
    mask_token: int | None = None
    """Of BERT; by default the one that its tokenizer calls [MASK]."""
    dtype: Literal["float32", "bfloat16", "float64"] = "float32"
    """Type of activations and products of the run."""
    ignore: Collection[str] = ()
    """Keys of config.json that are known not to change the function."""


def open_foreign(source: Path, options: Options) -> Foreign:
    """Open a model of another tool.

    Raises:
        UserError: it is none, or asks for what is not to be had here.
    """
    if source.is_dir():
        found = huggingface_model(source, options)
    elif not source.exists():
        raise UserError(f"{source} is not there: name a directory, a .gguf file or a nanoGPT .pt")
    elif source.suffix in (".pt", ".pth"):
        config, tensors = nanogpt.open_checkpoint(source)
        tokenizer = chosen_tokenizer(options.tokenizer, config.vocab_size)
        if tokenizer is None:
            raise UserError(
                f"{source} says nothing of its tokenizer: name its tokenizer.json by --tokenizer "
                "FILE, or --tokenizer ids for texts of token numbers"
            )
        found = Foreign("gpt", config, nanogpt.TABLE, tensors, tokenizer, _text_data)
    elif source.suffix == ".gguf":
        found = gguf_model(source, options)
    else:
        raise UserError(f"{source} is no model: name a directory, a .gguf file or a nanoGPT .pt")
    wide = sorted(name for name, dtype in found.tensors.types.items() if dtype == "float64")
    if wide and options.dtype != "float64":
        raise UserError(
            f"{wide[0]} of {source} is float64: keep it so by --dtype float64 and JAX_ENABLE_X64=1"
        )
    model = dataclasses.replace(found.model, dtype=options.dtype)
    return dataclasses.replace(found, model=model)


def huggingface_model(directory: Path, options: Options) -> Foreign:
    """The model in a Hugging Face directory.

    Raises:
        UserError: it has no config.json, tensors or tokenizer, or they ask for what is not to be
            had here.
    """
    path = directory / huggingface.CONFIG
    values = huggingface.read_json(path)
    family = huggingface.family_of(values, path)
    try:
        model = read_settings(family, values, options.ignore)
    except UserError as error:
        raise UserError(f"{directory}: {error}") from None
    tokenizer = chosen_tokenizer(options.tokenizer, model.vocab_size) or own_tokenizer(directory)
    data: Callable[[str], Any] = _text_data
    if family.kind == "bert":
        mask = options.mask_token
        data = _masked_data(mask_token_of(tokenizer, directory) if mask is None else mask)
    elif family.kind == "transformer_text":
        data = _pairs_data(special_tokens(values, directory))
    kept = {name: (directory / name).read_bytes() for name in KEPT if (directory / name).is_file()}
    tensors = huggingface.model_tensors(directory)
    return Foreign(family.kind, model, family.table_of(model), tensors, tokenizer, data, kept)


def gguf_model(path: Path, options: Options) -> Foreign:
    """The model in a GGUF file.

    Raises:
        UserError: it, its model or its tokenizer cannot be read here.
    """
    file = open_gguf(path)
    family = huggingface.family_of(file.values, path)
    try:
        model = read_settings(family, file.values, options.ignore)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    tokenizer = chosen_tokenizer(options.tokenizer, model.vocab_size)
    if tokenizer is None:
        tokenizer = gguf_tokenizer(path, file.metadata)
    kept, table = kept_files(file.metadata), family.table_of(model)
    return Foreign(family.kind, model, table, file.tensors, tokenizer, _text_data, kept)


def chosen_tokenizer(named: str | None, vocab_size: int) -> Tokenizer | None:
    """The tokenizer that the user names, if any."""
    if named is None:
        return None
    return IdTokenizer(vocab_size) if named == IDS else load_tokenizer(named)


def own_tokenizer(directory: Path) -> Tokenizer:
    """The tokenizer of a Hugging Face directory, in any of the forms that can be read here.

    Raises:
        UserError: there is none.
    """
    if (directory / "tokenizer.json").is_file():
        return load_tokenizer(directory / "tokenizer.json")
    names = [directory / name for name in ("vocab.json", "merges.txt", "vocab.txt")]
    vocabulary, merges, pieces = names
    if vocabulary.is_file() and merges.is_file():
        library = tokenizers.Tokenizer(
            tokenizers.models.BPE.from_file(str(vocabulary), str(merges))
        )
        library.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        library.decoder = tokenizers.decoders.ByteLevel()
        return BPETokenizer(library)
    if pieces.is_file():
        settings = directory / "tokenizer_config.json"
        lowercase = not settings.is_file() or huggingface.read_json(settings).get(
            "do_lower_case", True
        )
        whole = tokenizers.BertWordPieceTokenizer(str(pieces), lowercase=lowercase)
        return BPETokenizer(whole._tokenizer)
    there = [path.name for path in sorted(directory.glob("*.spm"))]
    there += [path.name for path in sorted(directory.glob("*.model"))]
    why = f"; {there[0]} is one of SentencePiece, which is not read" if there else ""
    raise UserError(
        f"{directory} has no tokenizer.json{why}: name one by --tokenizer FILE, or --tokenizer ids "
        "for texts of token numbers"
    )


def mask_token_of(tokenizer: Tokenizer, directory: Path) -> int:
    """The id of the token [MASK].

    Raises:
        UserError: the tokenizer has none.
    """
    found = None
    if isinstance(tokenizer, BPETokenizer):
        found = tokenizer.token_id("[MASK]")
    if found is None:
        raise UserError(
            f"the tokenizer of {directory} has no [MASK]: give its number by --mask-token N"
        )
    return found


def special_tokens(values: Values, directory: Path) -> tuple[int, int, int]:
    """Padding, start and end of an encoder-decoder, by its config.json.

    Raises:
        UserError: one of them is not a number, such as a list of several ends.
    """
    keys = {"pad_token_id": 58_100, "decoder_start_token_id": 58_100, "eos_token_id": 0}
    found = [values.get(key, default) for key, default in keys.items()]
    for key, value in zip(keys, found, strict=True):
        if type(value) is not int:
            raise UserError(f"{directory}: its config.json has {key} {value!r}: one number is used")
    padding, start, end = found
    return padding, start, end


def _text_data(tokenizer: str) -> DataConfig:
    return DataConfig(tokenizer=tokenizer)


def _masked_data(mask_token: int) -> Callable[[str], MaskedDataConfig]:
    return lambda tokenizer: MaskedDataConfig(tokenizer=tokenizer, mask_token=mask_token)


def _pairs_data(specials: tuple[int, int, int]) -> Callable[[str], TextPairsConfig]:
    return lambda tokenizer: TextPairsConfig(tokenizer=tokenizer, special_tokens=specials)
