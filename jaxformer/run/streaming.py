"""Text from tokens as a model emits them: decoded piece by piece, ended by stop strings.

`TextStream` is the text of one row, fed token by token; `stream_texts` the texts of a batch that is
generated step by step.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Int

from jaxformer.data.stream import REPLACEMENT, StreamDecoder
from jaxformer.data.tokenizer import Tokenizer
from jaxformer.decoding.stop_strings import StopFilter
from jaxformer.errors import UserError


class TextStream:
    """The text of one row from its tokens, up to the first stop string after the prompt."""

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = ()):
        """UserError for an empty stop string."""
        self._vocab_size = tokenizer.vocab_size
        self._decoder = StreamDecoder(tokenizer)
        self._filter = StopFilter(stops)

    @property
    def stopped(self) -> bool:
        """Whether a stop string is complete."""
        return self._filter.stopped

    def prompt(self, tokens: Sequence[int] | Int[np.ndarray, " L"]) -> str:
        """The text of the prompt, in which stop strings do not count."""
        return "".join(map(self._decoder.feed, tokens))

    def feed(self, token: int) -> str:
        """The text that `token` completes; U+FFFD for a token beyond the tokenizer's vocabulary."""
        known = token < self._vocab_size
        piece = self._decoder.feed(token) if known else self._decoder.flush() + REPLACEMENT
        return self._filter.feed(piece)

    def flush(self) -> str:
        """The text still held back, at the end of the row."""
        return self._filter.feed(self._decoder.flush()) + self._filter.flush()


def stream_texts(
    tokenizer: Tokenizer,
    prompts: Sequence[Int[np.ndarray, " _"]],
    steps: Iterator[Int[np.ndarray, " B"]],
    stops: Sequence[str] = (),
) -> Iterator[list[str]]:
    """A piece of text per row: first of its prompt, then of each new token, last the rest.

    Args:
        tokenizer: of the tokens.
        prompts: the tokens of each row's prompt.
        steps: the next token of every row, step by step; read until every row has stopped.
        stops: strings that end a row and are not part of its text.
    """
    texts = [TextStream(tokenizer, stops) for _ in prompts]
    yield [text.prompt(prompt) for text, prompt in zip(texts, prompts, strict=True)]
    for tokens in steps:
        yield [text.feed(token) for text, token in zip(texts, tokens.tolist(), strict=True)]
        if all(text.stopped for text in texts):
            break
    yield [text.flush() for text in texts]


def encode_prompt(tokenizer: Tokenizer, prompt: str) -> Int[np.ndarray, " L"]:
    """The tokens of a prompt; an empty one stands for a newline, since a model needs a token."""
    if prompt:
        return tokenizer.encode(prompt)
    try:
        return tokenizer.encode("\n")
    except UserError:
        raise UserError(
            "the run's tokenizer has no newline to begin with: give a --prompt"
        ) from None
