"""Text from tokens as a model emits them, one at a time."""

from jaxformer.data.tokenizer import Tokenizer

REPLACEMENT = "\ufffd"


class StreamDecoder:
    """Decodes ids one at a time, as a model emits them.

    What `feed` returned so far, then what `flush` returns, joined: exactly `decode` of all ids.
    A character whose bytes are incomplete is held back. Only a short tail of ids is decoded anew
    at each step, so the cost of a step does not grow.

    The tail keeps its effect exact: decoders look at their first token (some strip its space) and
    at UTF-8, which is in step again after at most three stray bytes. A tail of `KEEP` tokens has
    at least `KEEP` bytes, hence KEEP / 4 characters, hence four bytes: enough.
    """

    KEEP = 16

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._emitted = 0  # characters of decode(self._ids) that were returned already

    def feed(self, token_id: int) -> str:
        """The text that `token_id` settles, often that token's own; may be empty."""
        self._ids.append(int(token_id))
        if self._ids[-1] in self._tokenizer.open_ids:
            return ""
        text = self._tokenizer.decode(self._ids)
        # Any number of bytes that lack their last is one U+FFFD, so only the final one may change.
        settled = len(text) - text.endswith(REPLACEMENT)
        piece = text[self._emitted : settled]
        self._emitted = settled
        if len(self._ids) > 2 * self.KEEP:
            self._forget(len(text) - settled)
        return piece

    def flush(self) -> str:
        """The text still held back; the decoder is then as new."""
        piece = self._tokenizer.decode(self._ids)[self._emitted :]
        self._ids, self._emitted = [], 0
        return piece

    def _forget(self, num_held: int) -> None:
        tail = self._ids[-self.KEEP :]
        num_characters = len(self._tokenizer.decode(tail))
        if num_characters >= self.KEEP // 4:  # fewer only if some of the ids have no text at all
            self._ids, self._emitted = tail, num_characters - num_held
