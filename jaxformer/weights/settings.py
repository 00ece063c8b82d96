"""config.json of a Hugging Face model to and from a model's config, by a table of settings.

A file holds only what differs from the default of its class, and defaults differ by class, so every
row has one. What a file asks for and our models have not is refused by its name, and so is a key
that no row knows: it might change the function. Both directions read the same rows.
"""

import typing
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from jaxformer.config import ModelConfig
from jaxformer.errors import UserError

Values = dict[str, Any]


class Setting(NamedTuple):
    """A key of config.json that is a field of our config."""

    theirs: str
    ours: str
    default: Any
    """What the class of transformers takes where the key is absent."""
    values: Mapping[Any, Any] | None = None
    """Their values and ours, the first of equal ones is written; by default all, unchanged."""


class Fixed(NamedTuple):
    """A key with one value, or some, that our models compute; any other is refused."""

    theirs: str
    value: Any
    """What is written, and the default of the class unless there is another."""
    others: tuple[Any, ...] = ()
    """Further values that give the same function."""
    default: Any = ...


class Always(NamedTuple):
    """A field of our config that all models of a family have alike, without a key."""

    ours: str
    value: Any


Rows = tuple[Setting | Fixed | Always, ...]


class Family(NamedTuple):
    """A family of Hugging Face models: one file of `families/`."""

    model_type: str
    architecture: str
    """The class of transformers with all of our parameters, such as GPT2LMHeadModel."""
    kind: str
    """The kind of a run that holds such a model."""
    config: type[ModelConfig]
    table: Any
    """Rows from parameters to tensors."""
    settings: Rows
    ignored: frozenset[str]
    """Keys of this family that do not change the function of given weights."""
    complete: Callable[[Values], Values] = lambda values: values
    """Fills in what follows from other keys, before the rows are read."""
    untied: Any = None
    """The rows of a model whose output head is a matrix of its own, if the family has such."""
    written: Callable[[Any], Values] = lambda config: {}
    """Further keys of a file that is written; UserError for a model that is none of this family."""
    constants: Callable[[Any], Mapping[str, Any]] = lambda config: {}
    """Tensors that the class keeps in a file and our model computes: sinusoids."""

    def table_of(self, config: Any) -> Any:
        """The rows of this model."""
        return self.table if getattr(config, "tie_embeddings", True) else self.untied


IGNORED = frozenset({
    "_attn_implementation", "_commit_hash", "_name_or_path", "architectures", "bad_words_ids",
    "begin_suppress_tokens", "bos_token_id", "chunk_size_feed_forward", "cls_token_id",
    "custom_pipelines", "decoder_start_token_id", "diversity_penalty", "do_sample", "dtype",
    "early_stopping", "encoder_no_repeat_ngram_size", "eos_token_id",
    "exponential_decay_length_penalty", "finetuning_task", "forced_bos_token_id",
    "forced_eos_token_id", "gradient_checkpointing", "id2label", "initializer_range",
    "is_encoder_decoder", "label2id", "language", "length_penalty", "max_length", "min_length",
    "model_type", "no_repeat_ngram_size", "num_beam_groups", "num_beams", "num_labels",
    "num_return_sequences", "output_attentions", "output_hidden_states", "output_past",
    "output_scores", "pad_token_id", "prefix", "problem_type", "pruned_heads",
    "remove_invalid_values", "repetition_penalty", "return_dict", "return_dict_in_generate",
    "sep_token_id", "suppress_tokens", "task_specific_params", "temperature", "tf_legacy_loss",
    "tie_encoder_decoder", "tokenizer_class", "top_k", "top_p", "torch_dtype", "torchscript",
    "transformers_version", "typical_p", "use_bfloat16", "use_cache",
})  # fmt: skip
"""Keys of every class: of training, decoding and files, not of the function."""


def read_settings(
    family: Family, values: Mapping[str, Any], ignore: Collection[str] = ()
) -> ModelConfig:
    """The config of the model that a config.json describes.

    Args:
        family: of its `model_type`.
        values: of the file.
        ignore: keys that are known not to change the function.

    Raises:
        UserError: naming, all together, every key that is unknown and every value that our model
            has not.
    """
    problems = []
    keys = {row.theirs for row in family.settings if not isinstance(row, Always)}
    known = keys | family.ignored | IGNORED | {*ignore}
    if unknown := sorted(set(values) - known):
        problems.append(
            f"{', '.join(unknown)}: unknown here; if the function of the weights does not depend "
            f"on it, give --ignore {unknown[0]}"
        )
    values = family.complete(dict(values))
    fields: dict[str, Any] = {}
    types = typing.get_type_hints(family.config)
    for row in family.settings:
        if isinstance(row, Always):
            fields[row.ours] = row.value
            continue
        if row.theirs in ignore:
            continue
        if isinstance(row, Fixed):
            fits = row.value, *row.others
            value = values.get(row.theirs, row.value if row.default is ... else row.default)
            if not any(_same(value, fit) for fit in fits):
                problems.append(
                    f"{row.theirs} {value!r}, which is not to be had here, only {_shown(fits)}"
                )
            continue
        value = values.get(row.theirs, row.default)
        if row.values is None:
            wanted = typing.get_args(types[row.ours]) or (types[row.ours],)
            if type(value) is int and float in wanted:
                value = float(value)
            if type(value) in wanted:
                fields[row.ours] = value
            else:
                problems.append(f"{row.theirs} {value!r}, which is no {wanted[0].__name__}")
        elif isinstance(value, (str, bool, int, float)) and value in row.values:
            fields[row.ours] = row.values[value]
        else:
            problems.append(
                f"{row.theirs} {value!r}, which is not to be had here, only {_shown(row.values)}"
            )
    if problems:
        raise UserError(f"its config.json asks for {'; '.join(problems)}")
    return family.config(**fields)


def write_settings(family: Family, config: ModelConfig) -> Values:
    """The values of a config.json: the inverse of `read_settings`.

    Raises:
        UserError: the model has a setting that the family has no value for.
    """
    values: Values = {"architectures": [family.architecture], "model_type": family.model_type}
    for row in family.settings:
        if isinstance(row, Fixed):
            values[row.theirs] = row.value
            continue
        own = getattr(config, row.ours)
        if isinstance(row, Always):
            if own != row.value:
                raise _not_had(row.ours, own, family, [row.value])
            continue
        if values.get(row.theirs, own) != own:  # one key of theirs for two fields of ours
            raise _not_had(row.ours, own, family, [values[row.theirs]])
        found = [own] if row.values is None else [t for t, o in row.values.items() if o == own]
        if not found:
            raise _not_had(row.ours, own, family, (row.values or {}).values())
        values[row.theirs] = found[0]
    return values | family.written(config)


def _not_had(name: str, value: Any, family: Family, there: Collection[Any]) -> UserError:
    return UserError(
        f"model.{name.replace('_', '-')} {value} is not to be had as a {family.model_type}, which "
        f"has {_shown(dict.fromkeys(there))}"
    )


def _same(a: Any, b: Any) -> bool:
    return type(a) is type(b) and a == b


def _shown(values: Collection[Any]) -> str:
    return " or ".join(map(repr, values))
