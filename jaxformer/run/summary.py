"""The summary of a training run: its validation loss and the commands that come next."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from jaxformer import checkpoint
from jaxformer.config import BeamConfig
from jaxformer.data.corpus import read_corpus
from jaxformer.data.pairs import Pair
from jaxformer.evaluation.baselines import compare
from jaxformer.evaluation.bleu import Scores, score
from jaxformer.run.directory import CHECKPOINTS, CURVES, checkpoints_to_average
from jaxformer.run.evaluate import print_progress
from jaxformer.run.load import load_run
from jaxformer.run.loop import Outcome
from jaxformer.tasks.kinds import kind_of
from jaxformer.terminal import fitted


def summarise(outcome: Outcome, run_dir: Path) -> str:
    """A few lines that fit the terminal: the validation loss in every unit, and what comes next."""
    lines = []
    if outcome.evaluation is not None:
        evaluation = outcome.evaluation
        known = not outcome.data.lost and outcome.data.val_bytes is not None
        bits = f"{bits_per_byte(outcome):.3f} bits per byte · " if known else ""
        lines.append(
            f"validation loss {evaluation.loss:.4f} nats per token · perplexity "
            f"{evaluation.perplexity:.2f} · {bits}{evaluation.num_tokens:,} tokens"
        )
    verb = kind_of(outcome.config).command
    drawn = (run_dir / CURVES).is_file()
    curves = f"curves in {run_dir / CURVES}" if drawn else f"curves with: jaxformer plot {run_dir}"
    lines.append(f"{curves}; {verb} with: jaxformer {verb} {run_dir}")
    return fitted("\n".join(lines), sys.stdout)


def bits_per_byte(outcome: Outcome) -> float:
    """The last validation loss in bits per byte of validation text; of translations, of targets.

    It has no meaning if the tokenizer loses text, `outcome.data.lost`, or there is none.
    """
    assert outcome.evaluation is not None
    data = outcome.data
    return outcome.evaluation.bits_per_byte(data.num_val_tokens / data.val_bytes)


def beside_baselines(outcome: Outcome) -> str:
    """The validation loss beside those of a bigram model and of xz on the same text, if it is that
    of the finished run in bits per byte; else nothing."""
    if outcome.evaluation is None or not outcome.finished or outcome.data.lost:
        return ""
    corpus = read_corpus(outcome.config.data)
    return compare(bits_per_byte(outcome), corpus.text("train"), corpus.text("val")) + "\n"


def score_held_out(outcome: Outcome, run_dir: Path, beam: BeamConfig, average: int = 1) -> Scores:
    """The scores of the held-out pairs by the run's newest checkpoint, or a mean of the newest."""
    run, pairs = load_run(run_dir, average=average), outcome.data.val_texts
    translations = run.translate([pair.source for pair in pairs], beam, print_progress())
    return score(translations, [pair.target for pair in pairs])


def num_checkpoints(outcome: Outcome, run_dir: Path) -> int:
    """Checkpoints of the run that can be averaged."""
    return len(checkpoints_to_average(checkpoint.steps(run_dir / CHECKPOINTS), outcome.config))


def translated(outcome: Outcome, run_dir: Path) -> Iterator[str]:
    """Held-out pairs translated by the mean of the run's last checkpoints: examples, BLEU."""
    average = num_checkpoints(outcome, run_dir)
    scores = score_held_out(outcome, run_dir, BeamConfig(), average)
    yield from examples(outcome.data.val_texts, scores, 3)
    yield f"mean of the last {average} checkpoints: {scores.bleu_line()}"


def examples(pairs: Sequence[Pair], scores: Scores, count: int) -> Iterator[str]:
    """The first `count` translations, then the first `count` wrong ones of the rest, each wrong one
    beside its reference."""
    found = list(zip(pairs, scores.translations, strict=True))
    wrong = [(pair, text) for pair, text in found[count:] if text.strip() != pair.target.strip()]
    for (source, target), text in [*found[:count], *wrong[:count]]:
        asked = "" if text.strip() == target.strip() else f" (not {target})"
        yield f"{source} → {text}{asked}"
