"""Streamed text is the decoded text up to the first stop string, piece by piece."""

import math

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxformer.config import GPTConfig
from jaxformer.data.tokenizer import ByteTokenizer, CharTokenizer
from jaxformer.decoding.generate import Dispatch, generate
from jaxformer.errors import UserError
from jaxformer.models.functional import abstract_model, init_params
from jaxformer.models.gpt import GPT
from jaxformer.run.streaming import TextStream, encode_prompt, stream_texts

BYTES = ByteTokenizer()


def cut(text, stops):
    """The text up to the stop string that is complete first, the longest of several."""
    for end in range(len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            return text[: end - max(map(len, ending))]
    return text


@settings(max_examples=200)
@given(
    rows=st.lists(st.text("ab€", min_size=6, max_size=6), min_size=1, max_size=3),
    stops=st.lists(st.text("ab€", min_size=1, max_size=3), max_size=2),
)
def test_pieces_joined_are_the_prompt_and_the_text_up_to_a_stop_string(rows, stops):
    prompts = [BYTES.encode(text[:2]) for text in rows]
    tokens = [BYTES.encode(text[2:]).tolist() for text in rows]
    longest = max(map(len, tokens))
    # Rows that are shorter in bytes continue with a letter that is in no stop string.
    steps = np.array([row + BYTES.encode("z" * (longest - len(row))).tolist() for row in tokens]).T
    pieces = list(stream_texts(BYTES, prompts, iter(steps), stops))
    texts = ["".join(row) for row in zip(*pieces, strict=True)]
    whole = [BYTES.decode(row) for row in steps.T]
    expected = [text[:2] + cut(new, stops) for text, new in zip(rows, whole, strict=True)]
    assert texts == expected


def test_steps_are_read_until_every_row_has_stopped():
    read = []

    def steps():
        for step in zip(b"xaby", b"yxxa", strict=True):
            read.append(step)
            yield np.array(step)

    pieces = list(stream_texts(BYTES, [BYTES.encode("a")] * 2, steps(), ["x"]))
    assert pieces == [["a", "a"], ["", "y"], ["", ""], ["", ""]]
    assert len(read) == 2


def test_a_stop_string_within_a_dispatch_ends_the_text_as_between_two():
    letters = CharTokenizer("abcdefghijklmnopqrstuvw")
    config = GPTConfig(
        vocab_size=23, context_length=13, width=10, num_heads=2, mlp_width=17, num_layers=1
    )
    model = abstract_model(GPT, config)[0], init_params(GPT, config, jax.random.key(0)), config
    prompts = [letters.encode("ab"), letters.encode("cdefg")]

    def texts(max_steps, stops):
        steps = generate(
            *model, prompts, max_new_tokens=16, seed=3, dispatch=Dispatch(max_steps, math.inf)
        )
        pieces = list(stream_texts(letters, prompts, steps, stops))[1:]
        return ["".join(row) for row in zip(*pieces, strict=True)]

    whole = texts(1, [])
    stops = [text[4:6] for text in whole]  # dispatches of 5 begin at tokens 1, 2, 7 and 12
    expected = [cut(text, stops) for text in whole]
    assert texts(5, stops) == texts(1, stops) == expected
    assert texts(5, []) == whole


def test_a_token_beyond_the_tokenizer_is_a_replacement_character():
    text = TextStream(CharTokenizer("ab"))
    assert [text.feed(token) for token in (0, 2, 1)] == ["a", "\ufffd", "b"]
    cut_short = TextStream(BYTES)
    assert cut_short.feed(0xE2) + cut_short.feed(256) == "\ufffd\ufffd"


def test_what_is_held_back_comes_at_the_end():
    """A character's first bytes, and the beginning of a stop string."""
    text = TextStream(BYTES, ["ab\ufffd!"])
    assert [text.feed(token) for token in b"ab\xe2"] == ["", "", ""]
    assert text.flush() == "ab\ufffd"


def test_an_empty_prompt_is_a_newline():
    assert encode_prompt(BYTES, "").tolist() == BYTES.encode("\n").tolist()
    assert encode_prompt(BYTES, "ab").tolist() == BYTES.encode("ab").tolist()
    with pytest.raises(UserError, match="--prompt"):
        encode_prompt(CharTokenizer("ab"), "")
