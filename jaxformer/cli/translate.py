"""`jaxformer translate RUN`: standard input translated line by line, in order."""

import contextlib
import dataclasses
import itertools
import select
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from jaxformer.cli.arguments import CheckpointArguments, RunPath, parse
from jaxformer.config import BeamConfig, TranslationConfig, require_positive
from jaxformer.errors import UserError
from jaxformer.terminal import say

if TYPE_CHECKING:  # jax starts slowly: `--help` does without
    import numpy as np

    from jaxformer.decoding.beam import Hypothesis
    from jaxformer.run.load import Run

DESCRIPTION = (
    "Translate each line of standard input by beam search with the run's newest checkpoint, or "
    "another, and print one line for it, in order, as batches are done; a pipe that stays open is "
    "answered as its lines arrive. With --n-best N above 1 print N lines for it: its number, score "
    "and text, separated by tabs. A line that cannot be translated is reported on standard error "
    "by its number and printed as an empty one; the exit status is 2."
)
BATCHES_AT_ONCE = 16  # lines that are read ahead and sorted by length
READ_BYTES = 2**16  # as many as a pipe of Linux holds


@dataclasses.dataclass(frozen=True)
class TranslateArguments:
    """The arguments of `jaxformer translate`."""

    run: RunPath
    """Directory of the run."""
    checkpoint: Annotated[CheckpointArguments, tyro.conf.arg(name="")]
    search: Annotated[BeamConfig, tyro.conf.arg(name="")]
    average: int = 1
    """Translate with the mean of the parameters of the newest N checkpoints; with `--step` or
    `--best`, of that one and those before it."""
    batch: int = 64
    """Lines that are translated together; lines of similar length share a batch."""

    def __post_init__(self) -> None:
        require_positive("average", self.average)
        require_positive("batch", self.batch)


def main(argv: Sequence[str]) -> int:
    """Print the translations; the exit status is 2 if a line had none, else 0.

    Raises:
        UserError: a run that cannot be used.
    """
    arguments = parse(TranslateArguments, argv, "jaxformer translate", DESCRIPTION)
    from jaxformer.run.load import load_run

    if sys.stdin is None:
        raise UserError("standard input is closed: give it text, one sentence per line")
    which = vars(arguments.checkpoint)
    run = load_run(arguments.run, TranslationConfig, average=arguments.average, **which)
    if run.remark:
        print(run.remark, file=sys.stderr)
    failed = False
    numbers = itertools.count(1)
    for lines in arriving(sys.stdin.buffer, BATCHES_AT_ONCE * arguments.batch):
        chunk = {number: line for line, number in zip(lines, numbers, strict=False)}
        sources: dict[int, np.ndarray] = {}
        for number, line in chunk.items():
            try:
                if text := read(line, number):
                    sources[number] = encode(run, text)
            except UserError as error:
                failed = True
                say(f"line {number}: {error}", sys.stderr)
        empty = ((number, "") for number in chunk if number not in sources)
        blocks = itertools.chain(empty, translations(run, arguments, sources))
        for block in in_order(blocks, first=min(chunk)):
            print(block, flush=True)
    return 2 if failed else 0


def arriving(stream: Any, most: int) -> Iterator[list[bytes]]:
    """The lines of a binary stream, those that are there together, `most` at a time.

    Whoever writes into a pipe that stays open, or types, may wait for the answer to a line.
    """
    lines: list[bytes] = []
    begun: list[bytes] = []  # pieces of a line that has not ended
    while piece := stream.read1(READ_BYTES):
        first, *others = piece.split(b"\n")
        begun.append(first)
        for other in others:
            lines.append(b"".join(begun))
            begun = [other]
        if len(lines) >= most or (lines and not more_is_there(stream)):
            yield from cut(lines, most)
            lines = []
    if last := b"".join(begun):
        lines.append(last)
    yield from cut(lines, most)


def cut(lines: list[bytes], most: int) -> Iterator[list[bytes]]:
    """The lines, at most so many at a time."""
    for first in range(0, len(lines), most):
        yield lines[first : first + most]


def more_is_there(stream: Any) -> bool:
    """Whether reading from the stream would not wait; a stream in memory never does."""
    with contextlib.suppress(ValueError):
        return bool(select.select([stream], [], [], 0)[0])
    return True


def read(line: bytes, number: int) -> str:
    """The text of a line without the white space around it, as training data are read."""
    try:
        text = line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"byte {error.start + 1} is not UTF-8 text: convert the input to UTF-8"
        ) from None
    return text.strip()


def encode(run: "Run", text: str) -> "np.ndarray":
    """Tokens of a text; UserError if the model cannot take them."""
    from jaxformer.decoding.prompts import validate_sources

    assert isinstance(run.config, TranslationConfig)
    return validate_sources([run.encode_source(text)], run.config.model, run.specials)[0]


def translations(
    run: "Run", arguments: TranslateArguments, sources: "dict[int, np.ndarray]"
) -> Iterator[tuple[int, str]]:
    """What is printed for each line that has a source, by its number, as batches are done."""
    if not sources:
        return
    numbers = list(sources)
    found = run.hypotheses(list(sources.values()), arguments.search, arguments.batch)
    for index, hypotheses in found:
        texts = [one_line(run, hypothesis) for hypothesis in hypotheses]
        if arguments.search.n_best > 1:
            texts = [
                f"{numbers[index]}\t{hypothesis.score:.6f}\t{text}"
                for hypothesis, text in zip(hypotheses, texts, strict=True)
            ]
        yield numbers[index], "\n".join(texts)


def one_line(run: "Run", hypothesis: "Hypothesis") -> str:
    """Text of a translation, on one line, whatever the model has produced."""
    return " ".join(run.text_of(hypothesis.tokens).splitlines()).strip()


def in_order(blocks: Iterable[tuple[int, str]], first: int) -> Iterator[str]:
    """The numbered blocks from `first`, each as soon as all before it have arrived."""
    early: dict[int, str] = {}
    for number, block in blocks:
        early[number] = block
        while first in early:
            yield early.pop(first)
            first += 1
