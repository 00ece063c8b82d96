"""Baselines of a language model: a bigram model of bytes, and a general-purpose compressor."""

import lzma
import sys

import numpy as np

from jaxformer.terminal import fitted


def bigram_bits_per_byte(train: bytes, val: bytes) -> float:
    """Bits per byte of `val` under byte pair counts of `train`, each count raised by one.

    p(b | a) = (n(a, b) + 1) / (n(a) + 256), Laplace's rule; the first byte is not scored.
    """
    before, after = np.frombuffer(train, np.uint8)[:-1], np.frombuffer(train, np.uint8)[1:]
    counts = np.bincount(before.astype(np.int64) * 256 + after, minlength=256 * 256)
    counts = counts.reshape(256, 256) + 1
    bits = -np.log2(counts / counts.sum(axis=1, keepdims=True))
    scored = np.frombuffer(val, np.uint8)
    return float(bits[scored[:-1], scored[1:]].mean())


def xz_bits_per_byte(val: bytes) -> float:
    """Bits per byte that xz (LZMA2, its strongest preset) needs for `val` by itself."""
    return 8 * len(lzma.compress(val, preset=9 | lzma.PRESET_EXTREME)) / len(val)


def compare(model_bits: float, train: str, val: str) -> str:
    """A line, or more on a narrow terminal: a model's bits per byte beside the baselines' on the
    same validation text."""
    train_bytes, val_bytes = train.encode(), val.encode()
    bigram, xz = bigram_bits_per_byte(train_bytes, val_bytes), xz_bits_per_byte(val_bytes)
    line = (
        f"validation text of {len(val_bytes):,} bytes, in bits per byte: this model "
        f"{model_bits:.3f} · bigram model {bigram:.3f} · xz {xz:.3f}"
    )
    return fitted(line, sys.stdout)
