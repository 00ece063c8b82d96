"""Our tokenizers as those of the `tokenizers` library, whose tokenizer.json other tools read."""

from collections.abc import Sequence

import tokenizers

from jaxformer.config.data import NUM_BYTES
from jaxformer.data.tokenizer import BPETokenizer, ByteTokenizer, CharTokenizer, Tokenizer
from jaxformer.errors import UserError


def as_library(tokenizer: Tokenizer, specials: Sequence[str] = ()) -> tokenizers.Tokenizer | None:
    """The same map between text and ids; None if there is none, of a tokenizer of ids.

    Args:
        tokenizer: of a run.
        specials: texts of the tokens that a model has after those of its tokenizer.
    """
    library: tokenizers.Tokenizer
    match tokenizer:
        case BPETokenizer():
            library = tokenizers.Tokenizer.from_str(tokenizer.to_json())
        case ByteTokenizer():
            library = _of_bytes()
        case CharTokenizer():
            library = _of_characters(tokenizer.characters)
        case _:
            return None
    if specials:
        library.add_special_tokens([*specials])
        ids = [library.token_to_id(token) for token in specials]
        wanted = [*range(tokenizer.vocab_size, tokenizer.vocab_size + len(specials))]
        if ids != wanted:
            raise UserError(
                f"the run's tokenizer has the ids {ids} for {', '.join(specials)}, and its model "
                f"{wanted}: it cannot be written for other tools"
            )
    return library


def byte_characters() -> dict[int, str]:
    """The character that stands for each byte in a byte-level vocabulary (Radford et al. 2019).

    Printable bytes stand for themselves, the others for the characters from U+0100 on.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(NUM_BYTES) if byte not in printable]
    shifted = {byte: chr(0x100 + place) for place, byte in enumerate(others)}
    return {byte: shifted.get(byte, chr(byte)) for byte in range(NUM_BYTES)}


def _of_bytes() -> tokenizers.Tokenizer:
    """Byte-pair encoding without a pair."""
    vocabulary = {character: byte for byte, character in byte_characters().items()}
    library = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    library.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
        add_prefix_space=False, use_regex=False
    )
    library.decoder = tokenizers.decoders.ByteLevel()
    return library


def _of_characters(characters: str) -> tokenizers.Tokenizer:
    """A vocabulary of words of one character; others are an error, as in ours."""
    vocabulary = {character: index for index, character in enumerate(characters)}
    library = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    library.pre_tokenizer = tokenizers.pre_tokenizers.Split(
        tokenizers.Regex(r"[\s\S]"), behavior="isolated"
    )
    library.decoder = tokenizers.decoders.Fuse()
    return library
