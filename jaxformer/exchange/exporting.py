"""A run as other tools read it: a Hugging Face directory, whose names transformers knows.

    config.json, generation_config.json       the model's settings, in the family's words
    model.safetensors                         its tensors, in the family's names and axes
    tokenizer.json, tokenizer_config.json     its tokenizer, but for one of token numbers

What was written is read again: by our own import, which gives the same parameters to the bit, and
by the other tool, where it is installed, on the same tokens. Only then has the directory its name.
"""

import dataclasses
import importlib.util
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import ml_dtypes  # noqa: F401  (bfloat16 for numpy)
import numpy as np
from jaxtyping import PyTree

from jaxformer.atomic import atomic_directory
from jaxformer.config import MaskedLanguageConfig, TranslationConfig
from jaxformer.errors import UserError
from jaxformer.exchange.comparison import Comparison, compare, start_of
from jaxformer.exchange.foreign import IDS, KEPT, Options, open_foreign
from jaxformer.exchange.importing import ORIGIN, foreign_params, require_new
from jaxformer.exchange.sides import RunSide, TransformersSide, drawn_rows
from jaxformer.exchange.tokenizers import as_library
from jaxformer.models.functional import abstract_model, flat_params, leaf_path
from jaxformer.run.load import Run
from jaxformer.tasks.translation import num_specials
from jaxformer.weights import huggingface
from jaxformer.weights.convert import to_torch
from jaxformer.weights.files import save_tensors
from jaxformer.weights.settings import Family, Values, write_settings

DType = Literal["float32", "bfloat16", "float16"]
TEXT = "Hello, world!\n\tdef f(x): return 3.14  # naïve “quotes” 漢字 🙂"
"""What tokenizers are compared on, as far as they know its characters."""
NUM_ROWS, LENGTH, NEW_TOKENS = 4, 32, 16
"""Rows of drawn tokens that are compared, their length, and how many tokens the run adds."""
END = "<|endoftext|>"


@dataclasses.dataclass(frozen=True)
class Exported:
    """What was written, and how it was verified."""

    found: Comparison | None
    """By the other tool; None if it was not asked."""
    notes: tuple[str, ...]
    """What a user should know."""


def export_huggingface(
    run: Run, target: Path, dtype: DType = "float32", *, verify: bool = True
) -> Exported:
    """Write the directory, whole or not at all.

    Raises:
        UserError: there is something already, the family has no words for the model, or what was
            written is another model to one of its readers.
    """
    require_new(target)
    family, settings = family_for(run)
    table = family.table_of(run.config.model)
    params = with_biases(run)
    notes = [*notes_of(run)]
    with atomic_directory(target) as directory:
        tensors = to_torch(params, table)
        tensors |= family.constants(run.config.model)
        cast = {name: tensor.astype(dtype) for name, tensor in tensors.items()}
        save_tensors(cast, directory / huggingface.TENSORS, {"format": "pt"})
        del tensors, cast
        _write_tokenizer(run, directory)
        _write_json(directory / huggingface.CONFIG, settings | token_ids(run) | {"dtype": dtype})
        if not isinstance(run.config, MaskedLanguageConfig):
            _write_json(directory / "generation_config.json", generation_config(run, directory))
        rounded = read_back(run, directory, params, dtype)
        found = None
        if verify and (lacking := missing_tool()):
            notes.append(lacking)
        elif verify:
            found = verified(dataclasses.replace(run, **rounded), directory)
    return Exported(found, tuple(notes))


def family_for(run: Run) -> tuple[Family, Values]:
    """The first family of Hugging Face models that has words for the run's model, and these.

    Raises:
        UserError: there is none; the reasons of each.
    """
    config, reasons = run.config.model, []
    for family in huggingface.FAMILIES.values():
        if family.config is type(config):
            try:
                return family, write_settings(family, config)
            except UserError as error:
                reasons.append(str(error))
    raise UserError(f"{run.directory} has no form for other tools: {'; '.join(reasons)}")


def with_biases(run: Run) -> PyTree:
    """The parameters as numpy arrays, with zeros for biases that the run has not.

    The families of GPT-2, BERT and Marian have biases; of zeros they are the same function. Those
    of Llama and its kin have them by part, as ours.
    """
    whole: Any = dataclasses.replace(run.config.model, scan_layers=False)
    if hasattr(whole, "norm_placement"):
        whole = dataclasses.replace(whole, use_bias=True)
    _, shapes = abstract_model(run.spec.model, whole)
    own = flat_params(run.params)

    def leaf(path: tuple[Any, ...], shape: jax.ShapeDtypeStruct) -> np.ndarray:
        name = leaf_path(path)
        return np.asarray(own[name]) if name in own else np.zeros(shape.shape, shape.dtype)

    return jax.tree_util.tree_map_with_path(leaf, shapes)


def notes_of(run: Run) -> Iterator[str]:
    """What a user should know of the form that other tools get."""
    if hasattr(run.config.model, "norm_placement") and not run.config.model.use_bias:
        yield "the model has no biases, and other tools' form has: they are written as zeros"
    if as_library(run.tokenizer) is None:
        yield "there is no tokenizer to write, as texts of the run are token numbers"


def specials_of(run: Run) -> dict[str, int]:
    """The special tokens by the names that transformers has for them."""
    if isinstance(run.config, TranslationConfig):
        tokens = run.specials
        return {"pad_token": tokens.padding, "bos_token": tokens.start, "eos_token": tokens.end}
    if isinstance(run.config, MaskedLanguageConfig):
        own = run.config.data.mask_token
        return {"mask_token": run.tokenizer.vocab_size if own is None else own}
    library = as_library(run.tokenizer)
    end = None if library is None else library.token_to_id(END)
    return {} if end is None else {"bos_token": end, "eos_token": end}


def added_tokens(run: Run) -> list[str]:
    """Texts of the tokens that follow those of the tokenizer, in order."""
    if isinstance(run.config, TranslationConfig):
        return ["<pad>", "<s>", "</s>"][: num_specials(run.config)]
    if isinstance(run.config, MaskedLanguageConfig):
        return ["[MASK]"] if run.config.data.mask_token is None else []
    return []


def token_ids(run: Run) -> Values:
    """The special tokens as config.json names them; the defaults of the classes are others."""
    found = specials_of(run)
    values: Values = {
        f"{name}_id": found.get(name) for name in ("bos_token", "eos_token", "pad_token")
    }
    if isinstance(run.config, TranslationConfig):
        values |= {
            "decoder_start_token_id": found["bos_token"],
            "forced_eos_token_id": found["eos_token"],
        }
        if found["bos_token"] == found["pad_token"]:
            values["bos_token_id"] = None
    return values


def generation_config(run: Run, directory: Path) -> Values:
    """How transformers decodes: as the model came with, or greedily up to the context."""
    kept = run.directory / ORIGIN / "generation_config.json"
    if kept.is_file():
        return huggingface.read_json(kept)
    values = {key: value for key, value in token_ids(run).items() if value is not None}
    if isinstance(run.config, TranslationConfig):
        never = sorted({run.specials.padding, run.specials.start})
        values |= {"bad_words_ids": [[token] for token in never], "num_beams": 4}
    return values | {"max_length": run.config.model.context_length}


def _write_tokenizer(run: Run, directory: Path) -> None:
    """tokenizer.json and what transformers wants beside it."""
    library = as_library(run.tokenizer, added_tokens(run))
    if library is None:
        return
    library.save(str(directory / "tokenizer.json"))
    kept = {name: run.directory / ORIGIN / name for name in KEPT}
    for name, path in kept.items():
        if path.is_file():
            (directory / name).write_bytes(path.read_bytes())
    if not kept["tokenizer_config.json"].is_file():
        texts = {name: library.id_to_token(token) for name, token in specials_of(run).items()}
        values = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": run.config.model.context_length,
            "clean_up_tokenization_spaces": False,
            **{name: text for name, text in texts.items() if text is not None},
        }
        _write_json(directory / "tokenizer_config.json", values)


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def read_back(run: Run, directory: Path, params: PyTree, dtype: DType) -> dict[str, Any]:
    """The written model as our import reads it: its graph definition and parameters.

    Raises:
        UserError: they are not the run's to the bit, rounded to the type of the file.
    """
    mask = specials_of(run).get("mask_token")
    model_type = run.config.model.dtype
    options = Options(tokenizer=IDS, mask_token=mask, dtype=model_type)
    foreign = open_foreign(directory, options)
    whole = dataclasses.replace(foreign.model, scan_layers=False)
    graphdef, shapes = abstract_model(run.spec.model, whole)
    found = foreign_params(directory, foreign, shapes)
    ours = flat_params(params)
    for path, array in flat_params(found).items():
        expected = ours[path].astype(dtype).astype(array.dtype)
        if not np.array_equal(np.asarray(array), expected, equal_nan=True):
            raise UserError(f"{directory}: {path} is read otherwise than it was written")
    return {"graphdef": graphdef, "params": found}


def missing_tool() -> str:
    """Why the other tool is not asked; empty if it can be."""
    lacking = [name for name in ("transformers", "torch") if importlib.util.find_spec(name) is None]
    if not lacking:
        return ""
    return f"not verified by transformers: {' and '.join(lacking)} not installed"


def verified(run: Run, directory: Path) -> Comparison:
    """The run, rounded as the file is, beside transformers' reading of the file.

    Raises:
        UserError: it has names too many or too few, another tokenizer, or is another function.
    """
    ours, theirs = RunSide(run), TransformersSide(directory)
    if theirs.unfit:
        raise UserError(f"transformers finds other tensors in what was written: {theirs.unfit}")
    if (directory / "tokenizer.json").is_file():
        check_tokenizer(run, theirs)
    return verified_rows(ours, theirs)


def verified_rows(ours: RunSide, theirs: TransformersSide) -> Comparison:
    """Both on the same drawn rows.

    Raises:
        UserError: they are two functions.
    """
    rows = drawn_rows([ours, theirs], NUM_ROWS, LENGTH, start_of(ours, theirs))
    found = compare(ours, theirs, rows, NEW_TOKENS)
    if not found.ok:
        raise UserError(f"transformers reads another model in what was written: {found}")
    return found


def check_tokenizer(run: Run, theirs: TransformersSide) -> None:
    """Compare the tokens of a text by both tokenizers, as far as the run's knows it."""
    text = "".join(filter(_knows(run), TEXT))
    ours = run.tokenizer.encode(text)
    found = theirs.tokenizer(text, add_special_tokens=False)["input_ids"]
    if list(found) != ours.tolist():
        raise UserError(
            f"transformers encodes {text!r} as {list(found)[:20]}, the run as {ours.tolist()[:20]}"
        )


def _knows(run: Run) -> Callable[[str], bool]:
    def knows(character: str) -> bool:
        try:
            return len(run.tokenizer.encode(character)) > 0
        except UserError:
            return False

    return knows
