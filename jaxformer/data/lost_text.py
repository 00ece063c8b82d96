"""What a tokenizer loses of a text: characters that decoding its tokens does not give back."""

import itertools
from collections import Counter
from collections.abc import Iterable

from jaxformer.data.tokenizer import Tokenizer, pieces_of

CHARACTERS_AT_ONCE = 1 << 20  # of a text that is encoded and decoded to compare it


def lost_share(tokenizer: Tokenizer, texts: Iterable[str]) -> float:
    """Share of the characters of `texts` that decoding their tokens does not give back.

    It is 0 only if every text comes back exactly, but for a space before it, which tokenizers of
    SentencePiece's kind add. Unknown words, case and white space are often lost.
    """
    lost = total = 0
    pieces = (pieces_of(text, CHARACTERS_AT_ONCE) for text in texts)
    for text in itertools.chain.from_iterable(pieces):
        total += len(text)
        found = tokenizer.decode(tokenizer.encode(text))
        if found.removeprefix(" ") != text.removeprefix(" "):
            lost += max(1, (Counter(text) - Counter(found)).total())
    return lost / max(total, 1)


def loss_note(lost: float) -> str:
    """What a log says of a tokenizer that loses this share of the text; empty for none."""
    if not lost:
        return ""
    return (
        f"; {percentage(lost)} of the characters are lost, as decoding does not reproduce the "
        "text: there are no bits per byte"
    )


def percentage(lost: float) -> str:
    """A share that is not 0, of which two decimals may be too few."""
    return f"{lost:.2%}" if lost >= 1e-4 else "less than 0.01%"
