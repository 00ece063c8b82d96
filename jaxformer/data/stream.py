"""Text from tokens as a model emits them, one at a time."""

from jaxformer.data.tokenizer import Tokenizer

REPLACEMENT = "\ufffd"


class StreamDecoder:
    """Decodes ids one at a time.

    The results of `feed`, joined, followed by that of `flush`, equal `decode` of all ids. A
    character whose bytes are incomplete is held back. Each step decodes only a short tail of ids,
    so the cost of a step is bounded.

    Decoding the tail alone is exact: decoders depend on their first token (some strip its space)
    and on UTF-8, which resynchronises after at most three stray bytes. A tail of `KEEP` tokens has
    at least `KEEP` bytes, hence KEEP / 4 characters, hence four bytes, which is enough.
    """

    KEEP = 16

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._emitted = 0  # characters of decode(self._ids) already returned

    def feed(self, token_id: int) -> str:
        """The text that `token_id` completes, often the text of that token; may be empty."""
        self._ids.append(int(token_id))
        if self._ids[-1] in self._tokenizer.open_ids:
            return ""
        text = self._tokenizer.decode(self._ids)
        # An incomplete character is one U+FFFD whatever its length: only the last one can change.
        settled = len(text) - text.endswith(REPLACEMENT)
        piece = text[self._emitted : settled]
        self._emitted = settled
        if len(self._ids) > 2 * self.KEEP:
            self._forget(len(text) - settled)
        return piece

    def flush(self) -> str:
        """The text still held back; resets the decoder."""
        piece = self._tokenizer.decode(self._ids)[self._emitted :]
        self._ids, self._emitted = [], 0
        return piece

    def _forget(self, num_held: int) -> None:
        tail = self._ids[-self.KEEP :]
        num_characters = len(self._tokenizer.decode(tail))
        if num_characters >= self.KEEP // 4:  # fewer only if some ids have no text
            self._ids, self._emitted = tail, num_characters - num_held
