"""The baselines against their definitions."""

import itertools
import lzma
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxformer.evaluation.baselines import bigram_bits_per_byte, compare, xz_bits_per_byte

TEXTS = st.binary(min_size=2, max_size=60)


@given(TEXTS, TEXTS)
@settings(deadline=None, max_examples=40)
def test_bigram_equals_the_counts_written_out(train, val):
    bits = []
    for a, b in itertools.pairwise(val):
        pairs = sum(pair == (a, b) for pair in itertools.pairwise(train))
        bits.append(-math.log2((pairs + 1) / (train[:-1].count(a) + 256)))
    assert bigram_bits_per_byte(train, val) == pytest.approx(sum(bits) / len(bits), rel=1e-12)


def test_a_constant_text_costs_a_bigram_model_less_than_a_random_one():
    assert bigram_bits_per_byte(b"a" * 10_000, b"a" * 50) < 0.05


def test_xz_counts_the_bits_of_what_it_writes():
    text = b"a house, a cat, a house, a hat, " * 30
    packed = lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)
    assert lzma.decompress(packed) == text
    assert xz_bits_per_byte(text) == 8 * len(packed) / len(text)


def test_the_line_names_all_three():
    train, val = "Some text to learn: É, ß and A.", "Élan, Été, SS, ß."
    line = compare(1.5, train, val)
    bigram = bigram_bits_per_byte(train.encode(), val.encode())
    assert line == (
        "validation text of 21 bytes, in bits per byte: this model 1.500 · bigram model "
        f"{bigram:.3f} · xz {xz_bits_per_byte(val.encode()):.3f}"
    )
    for changed in (str.lower, str.upper, str.split):
        other = "".join(changed(val)).encode()
        assert f"{bigram_bits_per_byte(train.encode(), other):.3f}" != f"{bigram:.3f}"
