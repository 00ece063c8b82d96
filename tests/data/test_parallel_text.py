"""Two files stay aligned line by line, are split by their pairs only, or refused in one line."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxformer.config import TextPairsConfig
from jaxformer.data.clean import Cleaning
from jaxformer.data.pairs import Pair
from jaxformer.data.parallel_text import PairTexts, read_text_pairs
from jaxformer.errors import UserError

PAIRS = [Pair(f"sentence {i}", f"Satz {i}") for i in range(200)]

few = settings(deadline=None, max_examples=60)


def config(folder, pairs, **changes):
    """Settings whose files hold `pairs`."""
    for i, name in enumerate(("source.txt", "target.txt")):
        (folder / name).write_text("".join(pair[i] + "\n" for pair in pairs), encoding="utf-8")
    files = {"source": folder / "source.txt", "target": folder / "target.txt"}
    return TextPairsConfig(**{**files, "val_fraction": 0.2, **changes})


def test_pairs_are_split_and_none_is_lost(tmp_path):
    texts = read_text_pairs(config(tmp_path, PAIRS))
    assert sorted(texts.train + texts.val) == sorted(PAIRS)
    assert texts.train == tuple(pair for pair in PAIRS if pair not in texts.val)  # in order
    assert 20 < len(texts.val) < 60
    assert texts.name == "source.txt to target.txt"
    assert texts.cleaning == Cleaning(200)


def test_adding_a_pair_moves_no_other(tmp_path):
    before = read_text_pairs(config(tmp_path, PAIRS))
    new = Pair("new", "neu")
    after = read_text_pairs(config(tmp_path, [new, *PAIRS]))
    assert tuple(pair for pair in after.train if pair != new) == before.train
    assert tuple(pair for pair in after.val if pair != new) == before.val
    assert after.sha256() != before.sha256()


def test_a_repeated_pair_is_kept_once_in_one_split(tmp_path):
    texts = read_text_pairs(config(tmp_path, PAIRS * 2))
    assert not set(texts.train) & set(texts.val)
    assert sorted(texts.train + texts.val) == sorted(PAIRS)
    assert texts.cleaning == Cleaning(400, repeated=200)


def test_validation_files_are_used_whole_and_held_out_of_training(tmp_path):
    val = [PAIRS[3], Pair("", ""), PAIRS[3], Pair("x", "y")]
    (tmp_path / "val.a").write_text("".join(pair.source + "\n" for pair in val))
    (tmp_path / "val.b").write_text("".join(pair.target + "\n" for pair in val))
    files = {"val_source": tmp_path / "val.a", "val_target": tmp_path / "val.b"}
    texts = read_text_pairs(config(tmp_path, PAIRS, **files))
    assert texts.val == tuple(val)
    assert texts.train == tuple(PAIRS[:3] + PAIRS[4:])
    assert texts.cleaning == Cleaning(200, held_out=1)


def test_only_a_newline_ends_a_line(tmp_path):
    strange = Pair("a\u2028b\x0bc\x85d\rf", "e\x1cf")
    plain = Pair("g", "h")
    data = config(tmp_path, [strange, plain], val_fraction=0.5)
    texts = read_text_pairs(data)
    assert {*texts.train, *texts.val} == {strange, plain}


def test_white_space_around_a_line_and_a_byte_order_mark_are_dropped(tmp_path):
    data = config(tmp_path, PAIRS)
    plain = read_text_pairs(data)
    lines = "\r\n".join(f"  {pair.source}\t\u00a0" for pair in PAIRS)  # no newline at the end
    (tmp_path / "source.txt").write_bytes(b"\xef\xbb\xbf" + lines.encode())
    assert read_text_pairs(data) == plain


@given(
    st.lists(st.builds(Pair, st.sampled_from("ab"), st.sampled_from("ab")), max_size=4),
    st.integers(0, 4),
)
@few
def test_the_hash_covers_pairs_order_and_splits(pairs, cut):
    def sha256(train, val):
        return PairTexts("x", tuple(train), tuple(val), Cleaning(0)).sha256()

    whole = sha256(pairs, [])
    assert sha256(list(pairs), []) == whole
    assert (sha256(pairs[:cut], pairs[cut:]) == whole) == (cut >= len(pairs))
    assert (sha256(pairs[::-1], []) == whole) == (pairs == pairs[::-1])
    swapped = [Pair(pair.target, pair.source) for pair in pairs]
    assert (sha256(swapped, []) == whole) == (swapped == pairs)


def not_utf8(folder):
    (folder / "source.txt").write_bytes(b"one\ntwo\ncaf\xe9\n")


def one_line_less(folder):
    (folder / "target.txt").write_text("a\n" * 199)


def missing(folder):
    (folder / "source.txt").unlink()


def empty(folder):
    (folder / "source.txt").write_text("")


def blank_lines(folder):
    (folder / "source.txt").write_text("\n" * 200)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (not_utf8, r"data\.source .*source\.txt .*UTF-8.* line 3\b"),
        (one_line_less, r"data\.source .*source\.txt .*200 .*data\.target .*target\.txt .*199\b"),
        (missing, r"data\.source .*source\.txt .*No such file"),
        (empty, r"data\.source .*source\.txt .*empty"),
        (blank_lines, r"data\.source .*source\.txt .*training"),
    ],
)
def test_bad_files_are_refused_in_one_line(spoil, message, tmp_path):
    data = config(tmp_path, PAIRS)
    spoil(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        read_text_pairs(data)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": None}, r"data\.source\b"),
        ({"target": None}, r"data\.target\b"),
        ({"val_source": Path("source.txt")}, r"data\.val-source source\.txt "),
        ({"target": Path()}, r"data\.target \. .*Is a directory"),
        ({"val_fraction": 1e-9}, r"data\.source .*validation.*data\.val-fraction"),
    ],
)
def test_bad_settings_are_refused_in_one_line(changes, message, tmp_path):
    with pytest.raises(UserError, match=message) as caught:
        read_text_pairs(config(tmp_path, PAIRS, **changes))
    assert "\n" not in str(caught.value)


def test_one_validation_file_alone_is_refused(tmp_path):
    data = config(tmp_path, PAIRS)
    with pytest.raises(UserError, match=r"data\.val-target\b"):
        read_text_pairs(config(tmp_path, PAIRS, val_source=data.source))
