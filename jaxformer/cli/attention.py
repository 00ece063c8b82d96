"""`jaxformer attention RUN --text ...`: a picture of every layer's and head's attention weights."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from jaxformer.cli.arguments import CheckpointArguments, RunPath, parse
from jaxformer.errors import UserError
from jaxformer.evaluation.pictures import check_output
from jaxformer.extras import require_extra

if TYPE_CHECKING:  # jax starts slowly: `--help` does without
    import numpy as np

    from jaxformer.evaluation.attention_maps import Stack
    from jaxformer.run.load import Run

DESCRIPTION = (
    "Draw every layer's and head's attention weights. In a language model the text attends to "
    "itself; in a translation model the source to itself, the target to itself, and the target to "
    "the source. "
    "Prints the picture's path."
)
MAX_TOKENS = 64
"""Tokens of a side that a picture can still show."""


@dataclasses.dataclass(frozen=True)
class AttentionArguments:
    """The arguments of `jaxformer attention`."""

    run: RunPath
    """Directory of the run."""
    checkpoint: Annotated[CheckpointArguments, tyro.conf.arg(name="")]
    text: str
    """Text to read; of a translation model, the source."""
    target: str | None = None
    """Translation to read it with; by default the model's own, by greedy decoding."""
    output: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """The picture, FILE.png; by default attention.png in the run's directory."""

    def __post_init__(self) -> None:
        if self.output is not None:
            check_output("--output", self.output)


def main(argv: Sequence[str]) -> int:
    """Draw the picture; the exit status is 0.

    Raises:
        UserError: a run that cannot be used, or a text that its model cannot read.
    """
    arguments = parse(AttentionArguments, argv, "jaxformer attention", DESCRIPTION)
    require_extra("plot", "drawing")
    from jaxformer.config import TextRunConfig
    from jaxformer.evaluation.attention_maps import draw_attention
    from jaxformer.run.load import load_run

    run = load_run(arguments.run, **vars(arguments.checkpoint))
    path = arguments.output or arguments.run / "attention.png"
    check_output("--output", path)
    if isinstance(run.config, TextRunConfig):
        if arguments.target is not None:
            raise UserError(
                f"{arguments.run} is a {run.config.kind} run, which has no target: leave out "
                "--target"
            )
        stacks = text_stacks(run, arguments.text)
    else:
        stacks = translation_stacks(run, arguments.text, arguments.target)
    draw_attention(stacks, path, f"{arguments.run.resolve().name}, step {run.step}")
    print(path)
    return 0


def text_stacks(run: "Run", text: str) -> "list[Stack]":
    """The attention of a text to itself."""
    from jaxformer.evaluation.attention_maps import Stack, attention_weights, labels, layers_of
    from jaxformer.models.functional import merge

    tokens = require_tokens(run.tokenizer.encode(text), run.config.model.context_length, "--text")
    weights = attention_weights(merge(run.graphdef, run.params), tokens[None])
    words = labels(run.tokenizer, tokens)
    return [Stack("text attends to text", layers_of(weights, "blocks/*/attention"), words, words)]


def translation_stacks(run: "Run", text: str, target: str | None) -> "list[Stack]":
    """The three attentions of a source and a target."""
    import numpy as np

    from jaxformer.config import BeamConfig, TransformerConfig
    from jaxformer.decoding.beam import translate
    from jaxformer.evaluation.attention_maps import Stack, attention_weights, labels, layers_of
    from jaxformer.models.functional import merge

    model, specials = run.config.model, run.specials
    assert isinstance(model, TransformerConfig)
    source = require_tokens(run.encode_source(text.strip()), model.context_length, "--text")
    name = "--target"
    if target is None:
        name = "the model's own translation, without --target,"
        greedy = BeamConfig(beam=1, length_penalty=0.0)
        [[best]] = translate(run.graphdef, run.params, model, [source], specials, greedy)
        produced = np.asarray(best.tokens, np.int32)
    else:
        produced = run.tokenizer.encode(target.strip())
    read = np.concatenate([[specials.start], produced]).astype(np.int32)
    read = require_tokens(read, model.context_length, name)
    weights = attention_weights(merge(run.graphdef, run.params), source[None], read[None])
    sources, targets = labels(run.tokenizer, source), labels(run.tokenizer, read)
    return [
        Stack(title, layers_of(weights, kind), queries, keys)
        for title, kind, queries, keys in (
            ("encoder: source to source", "encoder/blocks/*/attention", sources, sources),
            ("decoder: target to target", "decoder/blocks/*/self_attention", targets, targets),
            ("decoder: target to source", "decoder/blocks/*/cross_attention", targets, sources),
        )
    ]


def require_tokens(tokens: "np.ndarray", context_length: int, name: str) -> "np.ndarray":
    """The tokens, unless there are none or more than the model or a picture takes."""
    if len(tokens) == 0:
        raise UserError(f"{name} is empty: give at least a word")
    longest = min(MAX_TOKENS, context_length)
    if len(tokens) > longest:
        raise UserError(
            f"{name} has {len(tokens):,} tokens, the picture holds {longest}: give a shorter one"
        )
    return tokens
