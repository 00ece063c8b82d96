"""The text of samples, piece by piece, from their tokens."""

from collections.abc import Iterator, Sequence

import numpy as np

from jaxformer.data.stream import StreamDecoder
from jaxformer.data.tokenizer import Tokenizer
from jaxformer.decoding.stop import StopFilter
from jaxformer.errors import UserError

REPLACEMENT = "\ufffd"


class TextStream:
    """The text of one row from its tokens, up to the stop string; the prompt's is never cut."""

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str]):
        self._vocab_size = tokenizer.vocab_size
        self._decoder = StreamDecoder(tokenizer)
        self._filter = StopFilter(stops)

    @property
    def stopped(self) -> bool:
        """Whether the row has met a stop string."""
        return self._filter.stopped

    def prompt(self, tokens: np.ndarray) -> str:
        """Text of the prompt; what follows is decoded as its continuation."""
        return "".join(map(self._decoder.feed, tokens))

    def feed(self, token: int) -> str:
        """Text that this token completes; a token that only the model knows is U+FFFD."""
        known = token < self._vocab_size
        piece = self._decoder.feed(token) if known else self._decoder.flush() + REPLACEMENT
        return self._filter.feed(piece)

    def flush(self) -> str:
        """Text still held back when the row ends."""
        return self._filter.feed(self._decoder.flush()) + self._filter.flush()


def encode_prompt(tokenizer: Tokenizer, prompt: str) -> np.ndarray:
    """Tokens of the prompt; of a newline if it is empty, for a GPT continues something."""
    if prompt:
        return tokenizer.encode(prompt)
    try:
        return tokenizer.encode("\n")
    except UserError:
        raise UserError(
            "the run's tokenizer has no newline to begin with: give a --prompt"
        ) from None


def decoded(
    tokenizer: Tokenizer,
    rows: Sequence[np.ndarray],
    steps: Iterator[np.ndarray],
    stop: Sequence[str],
) -> Iterator[list[str]]:
    """A piece of text for each row, first of its prompt, then of the tokens that follow it.

    Args:
        tokenizer: of the tokens.
        rows: tokens of each prompt.
        steps: the next token of each row, step by step.
        stop: texts that end a row and are not part of it; when all rows have ended, no step is
            asked for.
    """
    texts = [TextStream(tokenizer, stop) for _ in rows]
    yield [text.prompt(row) for text, row in zip(texts, rows, strict=True)]
    for tokens in steps:
        yield [text.feed(token) for text, token in zip(texts, tokens.tolist(), strict=True)]
        if all(text.stopped for text in texts):
            break
    yield [text.flush() for text in texts]
