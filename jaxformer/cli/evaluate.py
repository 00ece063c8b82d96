"""`jaxformer evaluate RUN`: loss, perplexity and bits a byte over a whole split."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from jaxformer.cli.arguments import RunPath, parse
from jaxformer.config import LanguageConfig
from jaxformer.errors import UserError

DESCRIPTION = "Score every token of the run's validation text and print the loss in every unit."


@dataclasses.dataclass(frozen=True)
class EvaluateArguments:
    """What `jaxformer evaluate` is asked."""

    run: RunPath
    """Directory of the run."""
    split: Literal["val", "train"] = "val"
    """Which side of the text to score."""
    json: Path | None = None
    """File to write the figures to as JSON."""


def main(argv: Sequence[str]) -> int:
    """Evaluate; the exit status is 0.

    Raises:
        UserError: when the run cannot be opened, or its text is no longer what it learned from.
    """
    arguments = parse(EvaluateArguments, argv, "jaxformer evaluate", DESCRIPTION)
    from jaxformer.atomic import replacing
    from jaxformer.data.batches import evaluation_batches
    from jaxformer.data.corpus import prepare
    from jaxformer.run.evaluate import evaluate_run
    from jaxformer.run.load import load_run

    run = load_run(arguments.run, LanguageConfig)
    assert isinstance(run.config, LanguageConfig)
    data = prepare(run.config.data)
    if data.fingerprint != run.data_fingerprint:
        raise UserError(
            f"the text that {arguments.run} learned from has changed: restore it to evaluate"
        )
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
    if arguments.json is not None:
        with replacing(arguments.json) as file:
            file.write(json.dumps(figures, indent=2).encode() + b"\n")
    return 0
