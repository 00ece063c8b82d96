"""Parallel text: two files, line i of one the translation of line i of the other.

Only a newline ends a line (with the carriage return before it, if any), so that the two files stay
aligned whatever they contain. A byte-order mark and the white space around a sentence are removed;
everything else is kept.
"""

import dataclasses
import hashlib
from pathlib import Path

from jaxformer.config import TextPairsConfig
from jaxformer.data.clean import Cleaning, clean_texts
from jaxformer.data.pairs import Pair
from jaxformer.errors import UserError


@dataclasses.dataclass(frozen=True)
class PairTexts:
    """The training pairs and the held-out pairs."""

    name: str
    train: tuple[Pair, ...]
    val: tuple[Pair, ...]
    cleaning: Cleaning
    """The pairs that were dropped from `train`, counted."""

    def sha256(self) -> str:
        """Hash of every pair, in order, and of its split; the name does not count."""
        digest = hashlib.sha256()
        for side, pairs in (("train", self.train), ("val", self.val)):
            digest.update(f"{side} {len(pairs)}\n".encode())
            for source, target in pairs:
                digest.update(f"{source}\n{target}\n".encode())
        return digest.hexdigest()


def read_text_pairs(data: TextPairsConfig) -> PairTexts:
    """The pairs of the files, cleaned by the rules that need no tokens, and the held-out pairs.

    Validation files are used whole, line for line. Without them a pair is held out if its hash,
    scaled to [0, 1), is below `val_fraction`: adding a pair moves no other, and a pair that occurs
    twice is kept once, in one split.

    Raises UserError for files that are not given, missing, unreadable, empty, not UTF-8 or of
    different numbers of lines, and if a split has no pairs.
    """
    pairs = read_aligned("source", data.source, "target", data.target)
    if data.val_source is not None or data.val_target is not None:
        val = read_aligned("val-source", data.val_source, "val-target", data.val_target)
        train, cleaning = clean_texts(pairs, held_out=val)
    else:
        pairs, cleaning = clean_texts(pairs)
        is_held_out = [_draw(pair) < data.val_fraction * 2**64 for pair in pairs]
        val = [pair for pair, held_out in zip(pairs, is_held_out, strict=True) if held_out]
        train = [pair for pair, held_out in zip(pairs, is_held_out, strict=True) if not held_out]
    for side, chosen in (("training", train), ("validation", val)):
        if not any(all(pair) for pair in chosen):
            raise UserError(
                f"data.source {data.source} leaves no {side} pairs, {cleaning}: give more lines, "
                "another data.val-fraction, or data.val-source and data.val-target"
            )
    name = " to ".join(path.name for path in (data.source, data.target) if path)
    return PairTexts(name, tuple(train), tuple(val), cleaning)


def _draw(pair: Pair) -> int:
    """A number below 2^64 that depends only on the pair."""
    text = f"{pair.source}\n{pair.target}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def read_aligned(
    source: str, source_path: Path | None, target: str, target_path: Path | None
) -> list[Pair]:
    """Every line of a source file with its line of the target; the flags are named in refusals."""
    sources, targets = _read_lines(source, source_path), _read_lines(target, target_path)
    if len(sources) != len(targets):
        raise UserError(
            f"data.{source} {source_path} has {len(sources)} lines and data.{target} "
            f"{target_path} has {len(targets)}: give files whose lines are translations, one by one"
        )
    return [Pair(*texts) for texts in zip(sources, targets, strict=True)]


def _read_lines(flag: str, path: Path | None) -> list[str]:
    if path is None:
        raise UserError(f"--data.{flag} is missing: name a text file with one sentence per line")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"data.{flag} {path} cannot be read ({error.strerror}): name a text file"
        ) from error
    try:
        lines = content.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"data.{flag} {path} is not UTF-8 text in line {line}: convert it or name another file"
        ) from error
    if not lines[-1]:  # text after the last newline is a line only if it is not empty
        del lines[-1]
    if not lines:
        raise UserError(f"data.{flag} {path} is empty: give a file with one sentence per line")
    return [line.strip() for line in lines]
