"""Tokenizers: text to integer ids and back.

Four kinds with one interface:

    ByteTokenizer   an id is a byte of the UTF-8 text; 256 ids, encodes every text
    CharTokenizer   an id is the rank of a character in the sorted alphabet of a text
    BPETokenizer    byte-level byte-pair encoding as in GPT-2, trained here, or any other tokenizer
                    that a tokenizer.json of the `tokenizers` library describes
    IdTokenizer     the text of a token is its number, for data that are tokens already
"""

from jaxformer.data.tokenizer.base import Tokenizer
from jaxformer.data.tokenizer.bpe import BPETokenizer, pieces_of
from jaxformer.data.tokenizer.files import (
    BUILT_IN,
    load_tokenizer,
    make_tokenizer,
    save_tokenizer,
)
from jaxformer.data.tokenizer.lookup import ByteTokenizer, CharTokenizer, IdTokenizer

__all__ = [
    "BUILT_IN",
    "BPETokenizer",
    "ByteTokenizer",
    "CharTokenizer",
    "IdTokenizer",
    "Tokenizer",
    "load_tokenizer",
    "make_tokenizer",
    "pieces_of",
    "save_tokenizer",
]
