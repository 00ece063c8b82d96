"""`jaxformer sample RUN`: text from a trained GPT, shown as it is written."""

import dataclasses
import itertools
import sys
from collections.abc import Sequence
from typing import Annotated

import tyro

from jaxformer.cli.arguments import CheckpointArguments, RunPath, parse
from jaxformer.config import SamplingConfig, TextRunConfig, require_positive
from jaxformer.decoding.stop_strings import StopFilter

DESCRIPTION = (
    "Continue each prompt with text from the run's newest checkpoint, or another. One "
    "sample is shown as it is written; several, each under a line that numbers it. The same seed "
    "writes the same text."
)
ROWS_AT_ONCE = 16  # the memory of the key-value cache grows with them
RULE = "-" * 24


@dataclasses.dataclass(frozen=True)
class SampleArguments:
    """The arguments of `jaxformer sample`."""

    run: RunPath
    """Directory of the run."""
    checkpoint: Annotated[CheckpointArguments, tyro.conf.arg(name="")]
    sampling: Annotated[SamplingConfig, tyro.conf.arg(name="")]
    prompt: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Text to continue; may be given several times. By default a newline."""
    max_new_tokens: int = 200
    """Tokens to write after each prompt."""
    stop: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Text that ends a sample and is not shown; may be given several times."""
    num_samples: int = 1
    """Samples of each prompt."""
    seed: int = 0
    """Seed of the draws."""

    def __post_init__(self) -> None:
        require_positive("max-new-tokens", self.max_new_tokens)
        require_positive("num-samples", self.num_samples)
        StopFilter(self.stop)


def main(argv: Sequence[str]) -> int:
    """Print the samples; the exit status is 0.

    Raises:
        UserError: a run that cannot be used, or a prompt that its model cannot continue.
    """
    arguments = parse(SampleArguments, argv, "jaxformer sample", DESCRIPTION)
    from jaxformer.run.load import load_run

    run = load_run(arguments.run, TextRunConfig, **vars(arguments.checkpoint))
    if run.remark:
        print(run.remark, file=sys.stderr)
    rows = [text for text in arguments.prompt or ("",) for _ in range(arguments.num_samples)]
    batches = [
        run.stream(
            rows[first : first + ROWS_AT_ONCE],
            max_new_tokens=arguments.max_new_tokens,
            sampling=arguments.sampling,
            stop=arguments.stop,
            seed=arguments.seed,
            first_row=first,
        )
        for first in range(0, len(rows), ROWS_AT_ONCE)
    ]
    if not arguments.prompt:  # the newline that stands for it is not shown
        batches = [itertools.islice(batch, 1, None) for batch in batches]
    if len(rows) == 1:
        for (piece,) in batches[0]:
            print(piece, end="", flush=True)
        print()
        return 0
    texts = ("".join(pieces) for batch in batches for pieces in zip(*batch, strict=True))
    for number, text in enumerate(texts, start=1):
        print(f"{RULE} sample {number} of {len(rows)} {RULE}\n{text}", flush=True)
    return 0
