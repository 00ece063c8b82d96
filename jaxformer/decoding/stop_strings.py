"""Stop strings in text that arrives in pieces."""

from collections.abc import Sequence

from jaxformer.errors import UserError


class StopFilter:
    """Passes text on until a stop string is complete, and drops that string and the rest.

    The result does not depend on how the text is cut into pieces. The stop string that is complete
    first ends the text; of several complete at the same character, the longest counts. A tail that
    may be the beginning of a stop string is held back until more text decides.
    """

    def __init__(self, stops: Sequence[str]):
        """Stop strings, perhaps none; UserError for an empty one."""
        if "" in stops:
            raise UserError("a stop string is empty: leave it out, or give one character or more")
        self._stops = stops
        self._held = ""
        self.stopped = False
        """Whether a stop string is complete."""

    def feed(self, piece: str) -> str:
        """The text that is certain after `piece`; empty once stopped."""
        if self.stopped:
            return ""
        text = self._held + piece
        places = [(text.find(stop), stop) for stop in self._stops]
        matches = [(start + len(stop), start) for start, stop in places if start >= 0]
        if matches:
            self.stopped, self._held = True, ""
            return text[: min(matches)[1]]
        certain = len(text) - self._undecided(text)
        self._held = text[certain:]
        return text[:certain]

    def flush(self) -> str:
        """The text still held back, at the end of the text."""
        held, self._held = self._held, ""
        return held

    def _undecided(self, text: str) -> int:
        """Length of the longest end of the text with which a stop string begins."""
        ends = (
            length
            for stop in self._stops
            for length in range(1, min(len(stop), len(text) + 1))
            if text.endswith(stop[:length])
        )
        return max(ends, default=0)
