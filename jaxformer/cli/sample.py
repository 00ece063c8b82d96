"""`jaxformer sample RUN`: text from a trained GPT, shown as it is written."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated

import tyro

from jaxformer.cli.arguments import RunPath, parse
from jaxformer.config import LanguageConfig, SamplingConfig, require_positive
from jaxformer.decoding.stop import StopFilter
from jaxformer.errors import UserError

if TYPE_CHECKING:  # jax starts slowly: `--help` does without
    import numpy as np

    from jaxformer.data.tokenizer import Tokenizer
    from jaxformer.run.load import Run

DESCRIPTION = (
    "Continue each prompt with text from the run's newest checkpoint. One sample is shown as it is "
    "written; several, each under a line that numbers it. The same seed writes the same text."
)
ROWS_AT_ONCE = 16  # the memory of the key-value cache grows with them
RULE = "-" * 24
REPLACEMENT = "\ufffd"


@dataclasses.dataclass(frozen=True)
class SampleArguments:
    """What `jaxformer sample` is asked."""

    run: RunPath
    """Directory of the run."""
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


class TextStream:
    """The text of one row from its tokens, up to the stop string; the prompt's is never cut."""

    def __init__(self, tokenizer: "Tokenizer", stops: Sequence[str]):
        from jaxformer.data.stream import StreamDecoder

        self._vocab_size = tokenizer.vocab_size
        self._decoder = StreamDecoder(tokenizer)
        self._filter = StopFilter(stops)

    @property
    def stopped(self) -> bool:
        """Whether the row has met a stop string."""
        return self._filter.stopped

    def prompt(self, tokens: "np.ndarray") -> str:
        """Text of the prompt; what follows is decoded as its continuation."""
        return "".join(map(self._decoder.feed, tokens))

    def feed(self, token: int) -> str:
        """Text that this token settles; a token that only the model knows is U+FFFD."""
        known = token < self._vocab_size
        piece = self._decoder.feed(token) if known else self._decoder.flush() + REPLACEMENT
        return self._filter.feed(piece)

    def flush(self) -> str:
        """Text still held back when the row ends."""
        return self._filter.feed(self._decoder.flush()) + self._filter.flush()


def main(argv: Sequence[str]) -> int:
    """Print the samples; the exit status is 0.

    Raises:
        UserError: a run that cannot be used, or a prompt that its model cannot continue.
    """
    arguments = parse(SampleArguments, argv, "jaxformer sample", DESCRIPTION)
    from jaxformer.run.load import load_run

    run = load_run(arguments.run, LanguageConfig)
    prompts = [encode_prompt(run.tokenizer, prompt) for prompt in arguments.prompt or ("",)]
    rows = [prompt for prompt in prompts for _ in range(arguments.num_samples)]
    batches = [
        stream(run, arguments, rows[first : first + ROWS_AT_ONCE], first)
        for first in range(0, len(rows), ROWS_AT_ONCE)
    ]
    if len(rows) == 1:
        for (piece,) in batches[0]:
            print(piece, end="", flush=True)
        print()
        return 0
    texts = ("".join(pieces) for batch in batches for pieces in zip(*batch, strict=True))
    for number, text in enumerate(texts, start=1):
        print(f"{RULE} sample {number} of {len(rows)} {RULE}\n{text}", flush=True)
    return 0


def encode_prompt(tokenizer: "Tokenizer", prompt: str) -> "np.ndarray":
    """Tokens of the prompt; of a newline if it is empty, for a GPT continues something."""
    if prompt:
        return tokenizer.encode(prompt)
    try:
        return tokenizer.encode("\n")
    except UserError:
        raise UserError(
            "the run's tokenizer has no newline to begin with: give a --prompt"
        ) from None


def stream(
    run: "Run", arguments: SampleArguments, rows: "list[np.ndarray]", first_row: int
) -> Iterator[list[str]]:
    """What each row shows, step by step: its prompt, if one was given, then its text.

    Prompts that the model cannot continue are refused at once; nothing is computed yet.
    """
    from jaxformer.decoding.generate import generate

    assert isinstance(run.config, LanguageConfig)
    steps = generate(
        run.graphdef,
        run.params,
        run.config.model,
        rows,
        max_new_tokens=arguments.max_new_tokens,
        sampling=arguments.sampling,
        seed=arguments.seed,
        first_row=first_row,
    )
    return _decoded(run.tokenizer, arguments, rows, steps)


def _decoded(
    tokenizer: "Tokenizer",
    arguments: SampleArguments,
    rows: "list[np.ndarray]",
    steps: "Iterator[np.ndarray]",
) -> Iterator[list[str]]:
    texts = [TextStream(tokenizer, arguments.stop) for _ in rows]
    prompts = [text.prompt(row) for text, row in zip(texts, rows, strict=True)]
    if arguments.prompt:
        yield prompts
    for tokens in steps:
        yield [text.feed(token) for text, token in zip(texts, tokens.tolist(), strict=True)]
        if all(text.stopped for text in texts):
            break
    yield [text.flush() for text in texts]
