"""Shards of tokens as nanoGPT and llm.c write them: one text, memory-mapped, in windows."""

import json
from pathlib import Path

import numpy as np
import pytest

from jaxformer.config import DataConfig
from jaxformer.data.batches import TrainingBatches, evaluation_batches
from jaxformer.data.shards import TokenShards, are_shards, prepare, prepare_shards
from jaxformer.data.tokenizer import IdTokenizer, load_tokenizer, save_tokenizer
from jaxformer.errors import UserError

TOKENS = np.random.default_rng(0).integers(0, 101, 997).astype("<u2")
CUTS = (131, 137, 500)
"""Where the files of the training side end; the second one is shorter than a window."""


def nanogpt(folder: Path, side: str, parts: list[np.ndarray]) -> None:
    np.concatenate(parts).tofile(folder / f"{side}.bin")


def llm_c(folder: Path, side: str, parts: list[np.ndarray]) -> None:
    for number, part in enumerate(parts):
        header = np.zeros(256, "<i4")
        header[:3] = 20240520, 1, len(part)
        with open(folder / f"fineweb_{side}_{number:06}.bin", "wb") as file:
            file.write(header.tobytes() + part.tobytes())


@pytest.fixture(params=[nanogpt, llm_c])
def data(request, tmp_path):
    request.param(tmp_path, "train", np.split(TOKENS, CUTS))
    request.param(tmp_path, "val", [TOKENS[:71]])
    return DataConfig(path=tmp_path)


def test_shards_are_the_tokens_that_were_written(data):
    assert are_shards(data.path)
    found = prepare(data)
    assert np.array_equal(found.train[:], TOKENS)
    assert np.array_equal(found.val[:], TOKENS[:71])
    assert (found.num_train_tokens, found.num_val_tokens) == (997, 71)
    assert (found.train_bytes, found.val_bytes) == (None, None)
    assert found.tokenizer.vocab_size == TOKENS.max() + 1


def test_every_slice_is_that_of_one_array():
    shards = TokenShards(np.split(TOKENS, CUTS))
    rng = np.random.default_rng(1)
    places = [*rng.integers(0, 999, (200, 2)), *np.array([(0, 997), (130, 138), (500, 500)])]
    for start, stop in places:
        assert np.array_equal(shards[start:stop], TOKENS[start:stop])
        assert shards[start:stop].dtype == TOKENS.dtype


def test_batches_of_shards_are_those_of_one_array():
    shards = TokenShards(np.split(TOKENS, CUTS))
    ours, theirs = (TrainingBatches(tokens, 5, 13, seed=3) for tokens in (shards, TOKENS))
    for step in range(40):  # over the end of an epoch
        assert all(map(np.array_equal, ours[step], theirs[step]))
    pairs = zip(evaluation_batches(shards, 2, 13), evaluation_batches(TOKENS, 2, 13), strict=True)
    assert all(np.array_equal(a, b) for pair in pairs for a, b in zip(*pair, strict=True))


def test_the_fingerprint_is_that_of_tokens_and_split_not_of_files(tmp_path):
    prints = []
    for number, (write, cut) in enumerate([(nanogpt, 900), (llm_c, 900), (llm_c, 901)]):
        folder = tmp_path / str(number)
        folder.mkdir()
        write(folder, "train", np.split(TOKENS[:cut], CUTS))
        write(folder, "val", [TOKENS[cut:]])
        prints.append(prepare_shards(DataConfig(path=folder)).fingerprint)
    assert prints[0] == prints[1] != prints[2]


def test_a_named_tokenizer_is_taken_if_it_knows_all_tokens(data, tmp_path):
    path = tmp_path / "tokenizer.json"
    for size in (101, 100):
        path.write_text(json.dumps({"kind": "ids", "vocab_size": size}))
        named = DataConfig(path=data.path, tokenizer=str(path))
        if size > TOKENS.max():
            assert prepare_shards(named).tokenizer.vocab_size == size
        else:
            with pytest.raises(UserError, match=r"100 tokens, but .* id 100"):
                prepare_shards(named)
    with pytest.raises(UserError, match=r"data\.tokenizer nowhere\.json"):
        prepare_shards(DataConfig(path=data.path, tokenizer="nowhere.json"))


def test_text_of_token_ids_is_their_numbers(tmp_path):
    save_tokenizer(IdTokenizer(7), tmp_path / "tokenizer.json")
    tokenizer = load_tokenizer(tmp_path / "tokenizer.json")
    assert tokenizer.encode("0 6\n3").tolist() == [0, 6, 3]
    assert tokenizer.decode([0, 6, 3]) == "0 6 3 "
    for text in ("7", "one", "-1", "", "\n", "1 x"):
        with pytest.raises(UserError, match="numbers from 0 to 6"):
            tokenizer.encode(text)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train.bin", b"", r"train\.bin has 0 bytes"),
        ("train.bin", b"\0" * 7, r"train\.bin has 7 bytes"),
        (
            "a_train_1.bin",
            np.array([20240520, 1, 9], "<i4").tobytes() + b"\0" * 1012,
            "1,024 bytes",
        ),
        ("a_train_1.bin", np.array([20240520, 2, 0], "<i4").tobytes() + b"\0" * 1012, "version 2"),
        ("val.bin", None, "none for validation"),
    ],
)
def test_what_is_no_shard_is_refused(data, name, content, message):
    for file in data.path.glob("*val*" if content is None else "*train*"):
        file.unlink()
    if content is not None:
        (data.path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        prepare(data)


def test_a_directory_of_texts_is_none_of_shards(folder):
    assert not are_shards(folder)
    assert not are_shards(folder / "00.txt")
    assert not are_shards(None)
