"""`jaxformer evaluate RUN`: the loss over a split, and how well a Transformer translates."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jaxformer.cli.arguments import RunPath, parse
from jaxformer.config import BeamConfig, LanguageConfig, TranslationConfig, require_positive
from jaxformer.errors import UserError

if TYPE_CHECKING:  # jax starts slowly: `--help` does without
    from jaxformer.run.load import Run

DESCRIPTION = (
    "Score every token of the run's validation data and print the loss in every unit. A "
    "translation run also translates the validation sources: BLEU with sacrebleu's signature, "
    "and exact matches."
)


@dataclasses.dataclass(frozen=True)
class EvaluateArguments:
    """What `jaxformer evaluate` is asked."""

    run: RunPath
    """Directory of the run."""
    split: Literal["val", "train"] = "val"
    """Which side of the data to score; sources are translated of the validation side only."""
    average: int = 1
    """Score the mean of the parameters of so many newest checkpoints, not the newest alone."""
    beam: int | None = None
    """Hypotheses that beam search follows, 4 by default; translation runs only."""
    length_penalty: float | None = None
    """alpha of ((5 + length) / 6)^alpha, 0.6 by default; translation runs only."""
    json: Path | None = None
    """File to write the figures to as JSON."""

    def __post_init__(self) -> None:
        require_positive("average", self.average)
        self.beam_config()

    @property
    def decoding(self) -> list[str]:
        """The given flags that say how to translate."""
        given = {"--beam": self.beam, "--length-penalty": self.length_penalty}
        return [flag for flag, value in given.items() if value is not None]

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
        UserError: when the run cannot be opened, its data are no longer what it learned from, or a
            flag is given that such a run has no use for.
    """
    arguments = parse(EvaluateArguments, argv, "jaxformer evaluate", DESCRIPTION)
    from jaxformer.atomic import atomic_write
    from jaxformer.run.load import load_run

    run = load_run(arguments.run, average=arguments.average)
    language = isinstance(run.config, LanguageConfig)
    figures = language_figures(run, arguments) if language else pair_figures(run, arguments)
    if arguments.json is not None:
        with atomic_write(arguments.json) as file:
            file.write(json.dumps(figures, indent=2).encode() + b"\n")
    return 0


def language_figures(run: "Run", arguments: EvaluateArguments) -> dict[str, Any]:
    """Loss, perplexity and bits a byte over a split; printed, and as they go into JSON."""
    from jaxformer.data.batches import evaluation_batches
    from jaxformer.data.corpus import prepare
    from jaxformer.run.load import evaluate_run

    if arguments.decoding:
        raise UserError(
            f"{arguments.run} is a GPT's, which translates nothing: leave out "
            f"{' and '.join(arguments.decoding)}"
        )
    assert isinstance(run.config, LanguageConfig)
    data = prepare(run.config.data)
    require_same(run, data.fingerprint, arguments.run)
    tokens, num_bytes = {
        "train": (data.train, data.train_bytes),
        "val": (data.val, data.val_bytes),
    }[arguments.split]
    batches = evaluation_batches(tokens, run.config.batch_size, run.config.model.context_length)
    result = evaluate_run(run, batches)
    figures = {
        "step": run.step,
        "split": arguments.split,
        "loss": result.loss,
        "perplexity": result.perplexity,
        "bits_per_byte": result.bits_per_byte(len(tokens) / num_bytes),
        "tokens": result.num_tokens,
        "bytes": num_bytes,
    }
    print(
        f"step {run.step} · {arguments.split} loss {result.loss:.4f} nats a token · perplexity "
        f"{result.perplexity:.3f} · {figures['bits_per_byte']:.4f} bits a byte · "
        f"{result.num_tokens:,} tokens"
    )
    return figures


def pair_figures(run: "Run", arguments: EvaluateArguments) -> dict[str, Any]:
    """Loss and perplexity of the targets, BLEU and exact matches of the translations."""
    from jaxformer.data.pair_batches import evaluation_pair_batches
    from jaxformer.data.translation import prepare_pairs
    from jaxformer.evaluation.bleu import score
    from jaxformer.run.load import evaluate_run

    assert isinstance(run.config, TranslationConfig)
    if arguments.split == "train" and arguments.decoding:
        raise UserError(
            "of the training pairs only the loss is measured: leave out "
            f"{' and '.join(arguments.decoding)} or --split train"
        )
    data = prepare_pairs(run.config.data)
    require_same(run, data.fingerprint, arguments.run)
    pairs = data.val if arguments.split == "val" else data.train
    result = evaluate_run(
        run, evaluation_pair_batches(pairs, run.specials, run.config.batch_tokens)
    )
    figures: dict[str, Any] = {
        "step": run.step,
        "split": arguments.split,
        "loss": result.loss,
        "perplexity": result.perplexity,
        "tokens": result.num_tokens,
        "pairs": len(pairs),
    }
    print(
        f"step {run.step} · {arguments.split} loss {result.loss:.4f} nats a token · perplexity "
        f"{result.perplexity:.3f} · {result.num_tokens:,} tokens"
    )
    if arguments.split == "val":
        beam = arguments.beam_config()
        scores = score(run, data.val_texts, beam)
        print(f"beam {beam.beam}, length penalty {beam.length_penalty} · {scores.bleu_line()}")
        print(scores.exact_match_line())
        figures |= {
            "beam": beam.beam,
            "length_penalty": beam.length_penalty,
            "bleu": scores.bleu,
            "signature": scores.signature,
            "exact_match": scores.exact_match,
        }
    return figures


def require_same(run: "Run", fingerprint: str, run_dir: Path) -> None:
    """Refuse data that are not those of the run."""
    if fingerprint != run.data_fingerprint:
        raise UserError(f"the text that {run_dir} learned from has changed: restore it to evaluate")
