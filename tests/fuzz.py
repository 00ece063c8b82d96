"""Damaged bytes and strange words, drawn from a seed, and what may come of them."""

import contextlib
import json
import random
import signal
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest

from jaxformer.errors import UserError

PATIENCE = 600
"""Seconds after which one case is taken to hang."""
ODD_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 2**31, 2**64, 10**400, 0.5, -0.0, 1e308, float("nan")),
    *("", "x", "\0", "\ud800", "nan", "Infinity", "../..", [], {}, [[]], {"": None}, "9" * 5000),
)


def counted(quick: int, slow: int) -> pytest.MarkDecorator:
    """The number of cases: `quick` in every run of the tests, `slow` in the full counts."""
    return pytest.mark.parametrize("count", [quick, pytest.param(slow, marks=pytest.mark.slow)])


@contextlib.contextmanager
def soon() -> Iterator[None]:
    """Fail a block that hangs."""

    def hang(number: int, frame: FrameType | None) -> None:
        raise AssertionError(f"hangs for {PATIENCE} seconds")

    before = signal.signal(signal.SIGALRM, hang)
    signal.alarm(PATIENCE)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def accepted_or_refused(function: Callable[[], Any]) -> bool:
    """Whether the function returned; otherwise it raised a UserError. Anything else is a defect."""
    with soon():
        try:
            function()
        except UserError:
            return False
    return True


def damaged(valid: bytes, rng: random.Random) -> bytes:
    """The bytes with bits flipped, cut, doubled, overwritten, or replaced altogether."""
    data = bytearray(valid)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        start, length = rng.randrange(len(data) + 1), rng.choice((1, 2, 8, 100))
        match rng.randrange(6):
            case 0 if data:
                data[start % len(data)] ^= 1 << rng.randrange(8)
            case 1:
                del data[start:]
            case 2:
                del data[start : start + length]
            case 3:
                data[start:start] = rng.randbytes(length)
            case 4:
                data[start:start] = data[start : start + length] * rng.choice((1, 2, 50))
            case _ if rng.random() < 0.1:
                data = bytearray(rng.randbytes(rng.choice((0, 1, 100, 10_000))))
    return bytes(data)


def odd_json(value: Any, rng: random.Random) -> Any:
    """The JSON value with something in it replaced, left out or added."""
    if not isinstance(value, dict | list) or not value or rng.random() < 0.1:
        return rng.choice(ODD_VALUES)
    value = value.copy()
    key = rng.choice(list(value)) if isinstance(value, dict) else rng.randrange(len(value))
    match rng.randrange(8):
        case 0:
            del value[key]
        case 1 if isinstance(value, dict):
            value[rng.choice(("", "x", "__class__", key.upper()))] = rng.choice(ODD_VALUES)
        case _:
            value[key] = odd_json(value[key], rng)
    return value


def odd_file(valid: bytes, rng: random.Random) -> bytes:
    """A JSON file with damaged bytes or odd values."""
    if rng.random() < 0.5:
        return damaged(valid, rng)
    text = json.dumps(odd_json(json.loads(valid), rng), ensure_ascii=rng.random() < 0.5)
    return text.encode(errors="surrogatepass")
