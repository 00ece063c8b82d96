"""`jaxformer evaluate RUN`: the loss over a split, and how well a Transformer translates."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from jaxformer.cli.arguments import CheckpointArguments, RunPath, parse
from jaxformer.cli.outputs import json_output
from jaxformer.config import BeamConfig, TextConfig, require_positive
from jaxformer.errors import UserError
from jaxformer.terminal import say

DESCRIPTION = (
    "Score every token of the run's validation data and print the loss in every unit, and the "
    "accuracy, the share of tokens that the model finds the likeliest. A "
    "translation run also translates the validation sources: BLEU with sacrebleu's signature, "
    "and exact matches. The data may lie elsewhere than in training; other data than those of the "
    "run are scored as a whole, and the output says so."
)


@dataclasses.dataclass(frozen=True)
class Places:
    """Where the run's data are now, or other data to score; by default where they were."""

    path: Path | None = None
    """Text of a language model's run: a file or a directory."""
    source: Path | None = None
    """Sources of a run on text files."""
    target: Path | None = None
    """Their translation."""
    val_source: Path | None = None
    """Sources that such a run validates on, if they are files of their own."""
    val_target: Path | None = None
    """Their translation."""


@dataclasses.dataclass(frozen=True)
class EvaluateArguments:
    """The arguments of `jaxformer evaluate`."""

    run: RunPath
    """Directory of the run."""
    checkpoint: Annotated[CheckpointArguments, tyro.conf.arg(name="")]
    split: Literal["val", "train"] = "val"
    """Which side of the data to score; sources are translated of the validation side only."""
    average: int = 1
    """Score the mean of the parameters of the newest N checkpoints; with `--step` or `--best`, of
    that one and those before it."""
    beam: int | None = None
    """Hypotheses that beam search follows, 4 by default; translation runs only."""
    length_penalty: float | None = None
    """alpha of ((5 + length) / 6)^alpha, 0.6 by default; translation runs only."""
    json: Path | None = None
    """File to write the figures to as JSON."""
    data: Places = dataclasses.field(default_factory=Places)

    def __post_init__(self) -> None:
        require_positive("average", self.average)
        self.beam_config()

    @property
    def decoding(self) -> list[str]:
        """The given flags that say how to translate."""
        given = {"--beam": self.beam, "--length-penalty": self.length_penalty}
        return [flag for flag, value in given.items() if value is not None]

    @property
    def places(self) -> dict[str, Path]:
        """The given places of data, by their settings."""
        given = vars(self.data).items()
        return {name: path.resolve() for name, path in given if path is not None}

    def beam_config(self) -> BeamConfig:
        """How to translate."""
        default = BeamConfig()
        return BeamConfig(
            beam=default.beam if self.beam is None else self.beam,
            length_penalty=(
                default.length_penalty if self.length_penalty is None else self.length_penalty
            ),
        )


def main(argv: Sequence[str]) -> int:
    """Evaluate; the exit status is 0.

    Raises:
        UserError: the run cannot be opened, its data have changed, or a flag is given that this
            kind of run does not use.
    """
    arguments = parse(EvaluateArguments, argv, "jaxformer evaluate", DESCRIPTION)
    from jaxformer.run.load import load_run

    run = load_run(arguments.run, average=arguments.average, **vars(arguments.checkpoint))
    require_used(arguments, isinstance(run.config, TextConfig))
    with json_output(arguments.json) as write_json:
        figures = run.evaluate(arguments.split, arguments.beam_config(), arguments.places)
        say("\n".join(lines(figures)))
        write_json(figures)
    return 0


def require_used(arguments: EvaluateArguments, reads_text: bool) -> None:
    """Refuse flags about translating where nothing is translated."""
    flags = " and ".join(arguments.decoding)
    if flags and reads_text:
        raise UserError(f"{arguments.run} reads text and translates nothing: leave out {flags}")
    if flags and arguments.split == "train":
        raise UserError(
            f"of the training pairs only the loss is measured: leave out {flags} or --split train"
        )


def lines(figures: dict[str, Any]) -> Iterator[str]:
    """The figures in words."""
    bits = ""
    if "bits_per_byte" in figures:
        value = figures["bits_per_byte"]
        why = "the tokenizer loses text" if figures["bytes"] else "there are tokens but no text"
        bits = f"no bits per byte, as {why} · "
        if value is not None:
            bits = f"{value:.4f} bits per byte · "
    if figures["split"] == "other":
        yield "other data than those the run learned from, scored as a whole:"
    yield (
        f"step {figures['step']} · {figures['split']} loss {figures['loss']:.4f} nats per token · "
        f"perplexity {figures['perplexity']:.3f} · accuracy {figures['accuracy']:.2%} · "
        f"{bits}{figures['tokens']:,} tokens"
    )
    if "bleu" in figures:
        yield (
            f"beam {figures['beam']}, length penalty {figures['length_penalty']} · "
            f"BLEU {figures['bleu']:.2f} ({figures['signature']})"
        )
        pairs = "pairs" if figures["split"] == "other" else "held-out pairs"
        yield f"exact match {figures['exact_match']:.2%} of {figures['pairs']:,} {pairs}"
