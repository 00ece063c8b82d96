"""The last words of a training run: what it reached and what to do with it."""

from pathlib import Path

from jaxformer.run.directory import CURVES
from jaxformer.run.loop import Outcome


def summarise(outcome: Outcome, run_dir: Path) -> str:
    """A few lines: the validation loss in every unit, and the commands that come next."""
    lines = []
    if outcome.evaluation is not None:
        evaluation = outcome.evaluation
        bits = bits_per_byte(outcome)
        lines.append(
            f"validation loss {evaluation.loss:.4f} nats a token · perplexity "
            f"{evaluation.perplexity:.2f} · {bits:.3f} bits a byte · "
            f"{evaluation.num_tokens:,} tokens"
        )
    if outcome.step < outcome.config.steps:
        lines.append(f"stopped at step {outcome.step} of {outcome.config.steps}; --resume goes on")
    lines.append(f"curves in {run_dir / CURVES}; sample with: jaxformer sample {run_dir}")
    return "\n".join(lines)


def bits_per_byte(outcome: Outcome) -> float:
    """The last validation loss in bits a byte of validation text."""
    assert outcome.evaluation is not None
    return outcome.evaluation.bits_per_byte(len(outcome.data.val) / outcome.data.val_bytes)
