"""Translation data: pairs of texts, read or generated, and their tokens prepared once on disk.

Both languages share one tokenizer of V tokens. Three special tokens follow: padding V, start V + 1
and end V + 2, so the vocabulary of the model has V + 3 tokens. The prepared tokens do not contain
them; a batch adds them (`jaxformer/data/pair_batches.py`). The source has neither start nor end:
the encoder reads all of it at once, and a mask gives its length. `special_tokens` of the settings
names other ones, of models from elsewhere: then prepared sources end with the end token.

Three kinds of data: two text files (`parallel_text.py`), numbers and dates in words (`numbers.py`),
random strings to copy or reverse (`strings.py`).

A preparation is a directory of the cache, keyed by the texts and the settings:

    train.source.npy, train.source.offsets.npy   token ids, and the start of each sequence
    train.target..., val.source..., val.target...
    tokenizer.json                               what made them
    val.texts.json                               the texts of the validation pairs
    manifest.jsonl                               hashes of all of it, counts of dropped pairs
    sources/                                     the text files it was made from (sources.py)
"""

import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxformer import manifest
from jaxformer.batch import SpecialTokens
from jaxformer.config import CopyConfig, NumbersConfig, TextPairsConfig
from jaxformer.data import sources
from jaxformer.data.cache import default_cache, load_or_build
from jaxformer.data.clean import Cleaning, length_faults
from jaxformer.data.lost_text import loss_note, lost_share
from jaxformer.data.numbers import number_pairs
from jaxformer.data.pairs import Pair, Sequences, TokenPairs
from jaxformer.data.parallel_text import PairTexts, read_text_pairs
from jaxformer.data.strings import string_pairs
from jaxformer.data.tokenizer import (
    BUILT_IN,
    BPETokenizer,
    CharTokenizer,
    Tokenizer,
    load_tokenizer,
    make_tokenizer,
    save_tokenizer,
)
from jaxformer.errors import UserError

PairsConfig = TextPairsConfig | NumbersConfig | CopyConfig
VAL_TEXTS = "val.texts.json"
FORMAT = 4  # of a preparation; raise it when the same settings would give other files


@dataclasses.dataclass(frozen=True)
class PreparedPairs:
    """Pairs as tokens, memory-mapped."""

    tokenizer: Tokenizer
    train: TokenPairs
    val: TokenPairs
    val_texts: tuple[Pair, ...]
    """The texts of `val`, pair by pair: the references for translations."""
    val_bytes: int
    """UTF-8 bytes of the validation targets: bits per byte = nats per token / ln 2 * tokens /
    bytes, an end token counted with every target."""
    fingerprint: str
    """SHA-256 of texts, split, tokenizer and cleaning; a resumed run must find the same."""
    lost: float
    """Share of the characters that decoding does not give back; if it is not 0, bits per byte of
    text have no meaning."""
    description: str
    """One line for the log."""
    specials: SpecialTokens
    """The tokens that are no text."""

    @property
    def num_train_tokens(self) -> int:
        """Tokens of the targets to learn from, an end token with each."""
        return len(self.train.targets.tokens) + len(self.train)

    @property
    def num_val_tokens(self) -> int:
        """Tokens of the validation targets, an end token with each."""
        return len(self.val.targets.tokens) + len(self.val)


def special_tokens_of(data: PairsConfig, tokenizer_size: int) -> SpecialTokens:
    """Those of the settings, or the first three ids that a tokenizer leaves free."""
    own = data.special_tokens if isinstance(data, TextPairsConfig) else None
    return SpecialTokens.after(tokenizer_size) if own is None else SpecialTokens(*own)


def encode_source(data: PairsConfig, tokenizer: Tokenizer, text: str) -> np.ndarray:
    """The tokens of a text to translate, with an end if the model is one from elsewhere."""
    tokens = tokenizer.encode(text)
    return np.append(tokens, _source_end(data)).astype(np.int32) if len(tokens) else tokens


def _source_end(data: PairsConfig) -> tuple[int, ...]:
    own = data.special_tokens if isinstance(data, TextPairsConfig) else None
    return () if own is None else own[-1:]


def read_pairs(data: PairsConfig) -> PairTexts:
    """The texts of a configuration; UserError as described in the module of its kind."""
    match data:
        case TextPairsConfig():
            return read_text_pairs(data)
        case NumbersConfig():
            return number_pairs(data)
        case CopyConfig():
            return string_pairs(data)


def prepare_pairs(data: PairsConfig, cache: Path | None = None) -> PreparedPairs:
    """The tokens of `data`, from the cache or built now.

    BPE is trained on both sides of the training pairs, before they are cleaned by length. A word
    has the same tokens at the beginning of a sentence as within it
    (`BPETokenizer.train_on_sentences`). A character tokenizer takes its alphabet from all pairs.
    Generated pairs are not cleaned by length.

    Equal settings on equal text give an equal `fingerprint`. Raises UserError for the reasons of
    `read_pairs`, the tokenizers and `cache.load_or_build`, and if cleaning leaves a split empty.
    """
    cache = cache or default_cache()
    files, read = _source_files(data), functools.partial(_open, data=data)
    found = sources.look_at(data, FORMAT, files) if files else None
    if found and (known := sources.find(cache, found)):
        directory, description = known
        if prepared := read(directory):
            return dataclasses.replace(prepared, description=description)
    texts = read_pairs(data)
    settings = f"{FORMAT} {texts.sha256()} {_tokenizer_settings(data)} {_rules(data)}"
    key = hashlib.sha256(settings.encode()).hexdigest()[:32]
    prepared = load_or_build(
        key, read=read, write=functools.partial(_write, texts=texts, data=data), cache=cache
    )
    description = f"{texts.name}: {prepared.description}"
    if found:
        sources.record(cache / key, found, description)
    return dataclasses.replace(prepared, description=description)


def fingerprint_with(data: PairsConfig, tokenizer: Tokenizer) -> str:
    """The fingerprint that the data of a configuration have with this tokenizer."""
    return _fingerprint(read_pairs(data).sha256(), tokenizer, _rules(data))


def _fingerprint(texts: str, tokenizer: Tokenizer, limits: str) -> str:
    identity = f"{texts} {tokenizer.fingerprint} {limits}"
    return hashlib.sha256(identity.encode()).hexdigest()


def _source_files(data: PairsConfig) -> list[Path]:
    """The files of texts that are read, and a tokenizer's own; none of generated pairs."""
    if not isinstance(data, TextPairsConfig):
        return []
    paths = data.source, data.target, data.val_source, data.val_target
    own = [Path(data.tokenizer)] if Path(data.tokenizer).is_file() else []
    return [path for path in paths if path is not None] + own


def _tokenizer_kind(data: PairsConfig) -> str:
    return "characters" if isinstance(data, CopyConfig) else data.tokenizer


def _tokenizer_settings(data: PairsConfig) -> str:
    kind = _tokenizer_kind(data)
    if isinstance(data, CopyConfig) or kind in ("bytes", "characters"):
        return kind
    if kind == "bpe":
        return f"bpe {data.vocab_size}"
    return make_tokenizer(kind, (), data.vocab_size).fingerprint


def _limits(data: PairsConfig) -> tuple[float, float]:
    """The largest length of a side in tokens, and the largest ratio of the two lengths."""
    if isinstance(data, TextPairsConfig):
        return data.max_tokens, data.max_ratio
    return math.inf, math.inf


def _rules(data: PairsConfig) -> str:
    """What else the prepared tokens depend on."""
    return " ".join(map(str, [_limits(data), *_source_end(data)]))


def _make_tokenizer(data: PairsConfig, texts: PairTexts) -> Tokenizer:
    if isinstance(data, CopyConfig) or data.tokenizer == "characters":
        return CharTokenizer.from_texts(text for pair in texts.train + texts.val for text in pair)
    learned = (text for pair in texts.train for text in pair)
    if data.tokenizer == "bpe":
        return BPETokenizer.train_on_sentences(learned, data.vocab_size)
    return make_tokenizer(data.tokenizer, learned, data.vocab_size)


def _write(directory: Path, texts: PairTexts, data: PairsConfig) -> None:
    directory.mkdir()
    save_tokenizer(_make_tokenizer(data, texts), directory / "tokenizer.json")
    tokenizer = load_tokenizer(directory / "tokenizer.json")  # as every later run finds it
    train, val = (encode_pairs(pairs, tokenizer, data) for pairs in (texts.train, texts.val))
    train, cleaning, _ = _cleaned(train, texts.cleaning, _limits(data))
    val_dropped: list[int] = []
    if not _has_val_files(data):
        val, cleaning, val_dropped = _cleaned(val, cleaning, _limits(data))
    if not (len(train) and len(val)):
        raise UserError(
            f"{texts.name}: {cleaning}, which leaves no pairs to train or to validate on: raise "
            "data.max-tokens or data.max-ratio"
        )
    for side, pairs in (("train", train), ("val", val)):
        pairs.sources.save(directory / f"{side}.source")
        pairs.targets.save(directory / f"{side}.target")
    dropped = set(val_dropped)
    val_texts = [pair for i, pair in enumerate(texts.val) if i not in dropped]
    (directory / VAL_TEXTS).write_text(json.dumps(val_texts))
    content = {
        "texts": texts.sha256(),
        "limits": _rules(data),
        "cleaning": dataclasses.asdict(cleaning),
        "lost": 0.0,
    }
    if _tokenizer_kind(data) not in BUILT_IN:
        every_text = (text for pair in texts.train + texts.val for text in pair)
        content["lost"] = lost_share(tokenizer, every_text)
    manifest.write(directory, content)


def encode_pairs(pairs: Sequence[Pair], tokenizer: Tokenizer, data: PairsConfig) -> TokenPairs:
    """The tokens of pairs, without special ones but those that sources end with."""
    dtype, end = "<u2" if tokenizer.vocab_size < 2**16 else "<u4", _source_end(data)
    sources = tokenizer.encode_each(pair.source for pair in pairs)
    return TokenPairs(
        Sequences.of((np.append(source, end) for source in sources) if end else sources, dtype),
        Sequences.of(tokenizer.encode_each(pair.target for pair in pairs), dtype),
    )


def _cleaned(
    pairs: TokenPairs, cleaning: Cleaning, limits: tuple[float, float]
) -> tuple[TokenPairs, Cleaning, list[int]]:
    """The pairs within the limits, the updated counts, and the indices of the dropped pairs."""
    too_long, unequal = length_faults(pairs.sources.lengths, pairs.targets.lengths, *limits)
    cleaning = dataclasses.replace(
        cleaning,
        too_long=cleaning.too_long + int(too_long.sum()),
        unequal=cleaning.unequal + int(unequal.sum()),
    )
    dropped = too_long | unequal
    return pairs.take(np.flatnonzero(~dropped)), cleaning, np.flatnonzero(dropped).tolist()


def _has_val_files(data: PairsConfig) -> bool:
    return isinstance(data, TextPairsConfig) and data.val_source is not None


def _open(directory: Path, data: PairsConfig) -> PreparedPairs | None:
    """The preparation in `directory`, if it is there, complete and undamaged."""
    try:
        content = manifest.verify(directory, parts=())
    except manifest.CorruptionError:
        return None
    cleaning = Cleaning(**content["cleaning"])
    val_texts = tuple(Pair(*texts) for texts in json.loads((directory / VAL_TEXTS).read_text()))
    tokenizer = load_tokenizer(directory / "tokenizer.json")
    train, val = (
        TokenPairs(
            Sequences.load(directory / f"{side}.source"),
            Sequences.load(directory / f"{side}.target"),
        )
        for side in ("train", "val")
    )
    return PreparedPairs(
        tokenizer=tokenizer,
        train=train,
        val=val,
        val_texts=val_texts,
        val_bytes=sum(len(pair.target.encode()) for pair in val_texts),
        fingerprint=_fingerprint(content["texts"], tokenizer, content["limits"]),
        lost=content["lost"],
        specials=special_tokens_of(data, tokenizer.vocab_size),
        description=(
            f"{len(train):,} pairs to learn from, {len(val):,} held out; "
            f"{cleaning}; {len(train.sources.tokens):,} source and "
            f"{len(train.targets.tokens):,} target tokens, vocabulary {tokenizer.vocab_size:,}, "
            f"texts {content['texts'][:12]}{loss_note(content['lost'])}"
        ),
    )
