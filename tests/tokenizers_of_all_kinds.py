"""A tokenizer of each kind, shared by the tests of tokenizers and of streams."""

import json

import tokenizers

from jaxformer.data.tokenizer import BPETokenizer, ByteTokenizer, CharTokenizer

ALPHABET = "ab \n\t'sé\u00a0€漢😀\U0001f1e9\ufffd\x00"
TEXTS = ["the cat sat on the mat\n", "naïve café 漢字 😀\n", "we're the cat's\n"]
BPE = BPETokenizer.train(TEXTS * 3, 300)
SENTENCES = BPETokenizer.train_on_sentences(TEXTS * 3, 300)
KINDS = {"bytes": ByteTokenizer(), "characters": CharTokenizer.from_texts([ALPHABET]), "bpe": BPE}


def fallback_tokenizer() -> BPETokenizer:
    """Sentence-piece rules as in Llama: a word sign, bytes for what is unknown."""
    tokens = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "▁a"]
    model = tokenizers.models.BPE(
        {token: i for i, token in enumerate(tokens)}, [("▁", "a")], byte_fallback=True
    )
    library = tokenizers.Tokenizer(model)
    library.normalizer = tokenizers.normalizers.Sequence(
        [tokenizers.normalizers.Prepend("▁"), tokenizers.normalizers.Replace(" ", "▁")]
    )
    library.decoder = tokenizers.decoders.Sequence(
        [
            tokenizers.decoders.Replace("▁", " "),
            tokenizers.decoders.ByteFallback(),
            tokenizers.decoders.Fuse(),
            tokenizers.decoders.Strip(" ", 1, 0),
        ]
    )
    return BPETokenizer(library)


def gappy_tokenizer() -> BPETokenizer:
    """Bytes whose ids are multiples of eight; those between mean nothing."""
    rules = json.loads(BPETokenizer.train([""], 256).to_json())
    rules["model"]["vocab"] = {token: 8 * i for token, i in rules["model"]["vocab"].items()}
    return BPETokenizer(tokenizers.Tokenizer.from_str(json.dumps(rules)))


def lossy_tokenizer() -> BPETokenizer:
    """Two words in lower case, as BERT's tokenizers have them; all other words are [UNK]."""
    vocabulary = {"[UNK]": 0, "the": 1, "cat": 2}
    library = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]"))
    library.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    library.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    library.decoder = tokenizers.decoders.WordPiece()
    return BPETokenizer(library)


ALL_KINDS = {
    **KINDS,
    "sentences": SENTENCES,
    "fallback": fallback_tokenizer(),
    "gappy": gappy_tokenizer(),
}
