"""Whether the weights of the original were loaded into a port."""

import numpy as np

from jaxformer.porting.pairing import Print
from jaxformer.porting.recorder import Recording
from jaxformer.porting.tape import Tape

BOUND = 1e-9
"""Of a number, relative: what is within it is the original's."""
SAME_NUMBERS = 0.5
"""The share of an array's numbers that are the original's if its weights were loaded."""


def equal_leaves(tape: Tape, recording: Recording) -> list[int]:
    """The leaves of the port that hold the numbers of a tensor of the original, or a part."""
    marks = [
        mark
        for value in recording.values
        if value.function in ("parameter", "buffer") and (mark := Print.of(value.array)) is not None
    ]
    if not marks:
        return []
    numbers = np.unique(np.concatenate([mark.sorted for mark in marks]))
    found = []
    for place in tape.places:
        mine = Print.of(tape.values[place.index]) if place.primitive == "leaf" else None
        if mine is None:
            continue
        right = np.searchsorted(numbers, mine.sorted).clip(0, len(numbers) - 1)
        left = np.maximum(right - 1, 0)
        near = np.minimum(abs(numbers[right] - mine.sorted), abs(numbers[left] - mine.sorted))
        if np.mean(near <= BOUND * (abs(mine.sorted) + BOUND)) > SAME_NUMBERS:
            found.append(place.index)
    return found


def loaded(tape: Tape, recording: Recording) -> bool:
    """Whether somebody loaded weights: an array of different numbers is one of the original's.

    Zeros and ones are what both sides begin with, and say nothing. A port without any other array
    has nothing to load.
    """
    leaves = [p.index for p in tape.places if p.primitive == "leaf"]
    telling = {i for i in leaves if Print.of(tape.values[i]) and np.ptp(tape.values[i]) > 0}
    return not telling or bool(telling & set(equal_leaves(tape, recording)))
