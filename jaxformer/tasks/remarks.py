"""What a user may have overlooked in a run's settings and data, in lines that end no run."""

from collections.abc import Iterator
from typing import Any

from jaxformer.config import DataConfig, OptimizerConfig, RunConfig, TextPairsConfig
from jaxformer.data.shards import are_shards

FEW_TOKENS = 1000
"""Tokens of a side below which its loss says little: losses of single tokens differ by some 3 nats,
so the mean of 1,000 is uncertain by 0.1."""


def remarks(config: Any, data: Any) -> Iterator[str]:
    """A line for each thing that is allowed but rarely meant, with the flag that helps.

    Args:
        config: of a run of any kind, resolved.
        data: what was prepared for it.
    """
    yield from about_warmup(config)
    yield from about_vocabulary(config.data, data)
    yield from about_sides(config, data)


def about_warmup(config: Any) -> Iterator[str]:
    """Whether the learning rate does nothing but grow, as in a recipe shortened by `--steps`.

    In the schedule of 2017 a shorter warm-up would also raise the peak: w^-0.5 times a constant.
    """
    warmup, steps = config.optimizer.warmup_steps, config.steps
    if warmup < steps:
        return
    advice = "choose more --steps"
    if isinstance(config.optimizer, OptimizerConfig) and steps > 1:
        advice += f" or --optimizer.warmup-steps {max(1, steps // 10)}"
    yield (
        f"the warm-up of {warmup:,} steps reaches the whole run of {steps:,}, so the learning rate "
        f"never decays: {advice}"
    )


def about_vocabulary(config: Any, data: Any) -> Iterator[str]:
    """Whether BPE learned fewer tokens than were asked for."""
    learned = data.tokenizer.vocab_size
    if are_shards(getattr(config, "path", None)):
        return  # what made them was trained elsewhere
    if getattr(config, "tokenizer", None) == "bpe" and learned < config.vocab_size:
        yield (
            f"the text has pairs for {learned:,} tokens of BPE only, not for --data.vocab-size "
            f"{config.vocab_size:,}: give more text or --data.vocab-size {learned}"
        )


def about_sides(config: RunConfig, data: Any) -> Iterator[str]:
    """Whether there is very little to learn from or to validate on."""
    (more_to_train, more_to_validate) = flags_for_more(config.data)
    if data.num_train_tokens < FEW_TOKENS:
        yield (
            f"the training side has {data.num_train_tokens:,} tokens only, which a model learns by "
            f"heart: give more by {more_to_train}"
        )
    if data.num_val_tokens < FEW_TOKENS:
        yield (
            f"the validation side has {data.num_val_tokens:,} tokens only, so its loss says "
            f"little: give more by {more_to_validate}"
        )


def flags_for_more(data: Any) -> tuple[str, str]:
    """The flags that make the training side and the validation side larger."""
    match data:
        case DataConfig() if are_shards(data.path):
            return "--data.path", "--data.path"
        case DataConfig():
            return "--data.path", "--data.val-fraction"
        case TextPairsConfig(val_source=None):
            return "--data.source and --data.target", "--data.val-fraction"
        case TextPairsConfig():
            return "--data.source and --data.target", "--data.val-source and --data.val-target"
        case _:
            return "--data.num-pairs", "--data.num-val-pairs"


def flags_of_files(data: Any) -> str:
    """The flags that name the files of the data; empty for generated ones."""
    match data:
        case DataConfig():
            return "--data.path"
        case TextPairsConfig(val_source=None):
            return "--data.source and --data.target"
        case TextPairsConfig():
            return "--data.source, --data.target, --data.val-source and --data.val-target"
        case _:
            return ""
