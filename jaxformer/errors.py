"""UserError: bad input, reported in one line that says what is wrong and what to do."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Bad input. Commands print its message as one line and exit with status 2.

    Where many things of one kind are wrong at once, each of `details` has a further line.
    """

    def __init__(self, message: str, details: Iterable[str] = ()):
        lines = [" ".join(text.split()) for text in (message, *details)]
        super().__init__("\n  ".join(lines))


def perhaps(word: str, known: Iterable[str], prefix: str = "") -> str:
    """`; perhaps you meant steps`, with the known word that is most like an unknown one, if any is.

    `prefix` stands before it, such as `model.`.
    """
    similar = difflib.get_close_matches(word, list(known), n=1)
    return f"; perhaps you meant {prefix}{similar[0]}" if similar else ""


TRY_AGAIN = 75
"""Exit status (EX_TEMPFAIL of sysexits.h) of a run that failed although its input is fine: a step
hung, or another process of the run died. Start it again with `--resume`."""
