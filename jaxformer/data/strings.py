"""Random strings to copy or to reverse: the first test of an encoder-decoder.

Lengths from 1 to the longest occur equally often, as far as enough strings exist. No string occurs
twice, and no held-out string is training data.
"""

import string

import numpy as np

from jaxformer.config import CopyConfig
from jaxformer.data.clean import Cleaning
from jaxformer.data.pairs import Pair
from jaxformer.data.parallel_text import PairTexts
from jaxformer.data.rng import HELD_OUT, even_shares, philox, shuffled
from jaxformer.errors import UserError


def string_pairs(data: CopyConfig) -> PairTexts:
    """The pairs that `data` describes: a pure function of `data`.

    Raises UserError if fewer different strings exist.
    """
    sizes = [data.num_symbols**length for length in range(1, data.max_length + 1)]
    val_shares = even_shares([size // HELD_OUT for size in sizes], data.num_val_pairs)
    left = [size - share for size, share in zip(sizes, val_shares, strict=True)]
    train_shares = even_shares(left, data.num_pairs)
    if sum(val_shares) < data.num_val_pairs or sum(train_shares) < data.num_pairs:
        raise UserError(
            f"data.num-pairs {data.num_pairs} and data.num-val-pairs {data.num_val_pairs} are more "
            f"than strings of up to {data.max_length} of {data.num_symbols} letters allow: "
            f"choose at most {sum(train_shares)} and {sum(val_shares)}, more letters or longer ones"
        )
    words = philox()
    train, val = [], []
    for length, (num_val, num_train) in enumerate(zip(val_shares, train_shares, strict=True), 1):
        strings = _different(words, length, data.num_symbols, num_val + num_train)
        val += strings[:num_val]
        train += strings[num_val:]
    task = "reverse" if data.reverse else "copy"
    step = -1 if data.reverse else 1
    pairs = [
        tuple(Pair(side[i], side[i][::step]) for i in shuffled(words, len(side)))
        for side in (train, val)
    ]
    return PairTexts(
        name=f"{task} of up to {data.max_length} letters",
        train=pairs[0],
        val=pairs[1],
        cleaning=Cleaning(len(train)),
    )


def _different(words: np.random.Philox, length: int, num_symbols: int, count: int) -> list[str]:
    """`count` different strings of this length, in the order of the draws."""
    letters = np.frombuffer(string.ascii_letters.encode(), dtype=np.uint8)
    found: dict[bytes, None] = {}
    while len(found) < count:
        drawn = letters[words.random_raw(count * length) % np.uint64(num_symbols)]
        found.update(dict.fromkeys(drawn.view(f"S{length}").tolist()))
    return [text.decode() for text in list(found)[:count]]
