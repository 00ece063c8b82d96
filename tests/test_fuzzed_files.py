"""Whatever a file contains, it is read, rebuilt or refused in one line; nothing else happens."""

import ast
import json
import random
from pathlib import Path

import numpy as np
import pytest

import jaxformer
from jaxformer.config import CopyConfig, CopyTranslationConfig, DataConfig, TransformerConfig
from jaxformer.data.corpus import prepare, read_corpus
from jaxformer.data.tokenizer import BPETokenizer, ByteTokenizer, CharTokenizer, load_tokenizer
from jaxformer.data.translation import prepare_pairs
from jaxformer.monitor.metrics import MetricsWriter, read_metrics
from jaxformer.tasks.config_io import config_to_json, load_config
from jaxformer.weights.files import load_tensors, save_tensors
from tests.fuzz import accepted_or_refused, counted, damaged, odd_file
from tests.run.tiny import TEXT, tiny_config


@counted(150, 3000)
def test_any_config(tmp_path: Path, count: int) -> None:
    rng = random.Random(4)
    toy = TransformerConfig(
        vocab_size=9, context_length=8, width=8, num_heads=2, mlp_width=8, num_layers=1
    )
    configs = tiny_config(tmp_path), CopyTranslationConfig(model=toy)
    valid = [json.dumps(config_to_json(config), indent=2).encode() for config in configs]
    path = tmp_path / "config.json"
    refused = 0
    for _ in range(count):
        data = odd_file(rng.choice(valid), rng)
        path.write_bytes(data)
        refused += not accepted_or_refused(lambda: load_config(path))
        assert path.read_bytes() == data
    assert refused > count / 2


@counted(150, 3000)
def test_any_tokenizer(tmp_path: Path, count: int) -> None:
    rng = random.Random(5)
    learned = BPETokenizer.train([TEXT[:3000]], 300), BPETokenizer.train_on_sentences(["a b"], 260)
    valid = [t.to_json().encode() for t in (*learned, CharTokenizer("\nabc"), ByteTokenizer())]
    path = tmp_path / "tokenizer.json"

    def use() -> None:
        tokenizer = load_tokenizer(path)
        tokens = tokenizer.encode("abc")
        assert tokens.dtype == np.int32
        tokenizer.decode(tokens)
        list(tokenizer.encode_each(["a", ""]))

    for _ in range(count):
        data = odd_file(rng.choice(valid), rng)
        path.write_bytes(data)
        accepted_or_refused(use)
        assert path.read_bytes() == data


@counted(100, 2000)
def test_any_metrics(tmp_path: Path, count: int) -> None:
    rng = random.Random(6)
    path = tmp_path / "metrics.jsonl"
    with MetricsWriter(path) as writer:
        for step in range(1, 6):
            writer.write(step, "train", loss=3.0 / step, grad_norm=float("nan"))
    valid = path.read_bytes()
    for _ in range(count):
        lines = valid.splitlines(keepends=True)
        number = rng.randrange(len(lines))
        lines[number] = odd_file(lines[number], rng) + rng.choice((b"\n", b""))
        data = b"".join(lines)
        path.write_bytes(data)
        accepted = accepted_or_refused(lambda: read_metrics(path))
        assert path.read_bytes() == data
        assert accepted_or_refused(lambda: MetricsWriter(path, 3).close()) == accepted
        if not accepted:
            assert path.read_bytes() == data, "refused, yet written to"


@counted(60, 1000)
def test_any_text(tmp_path: Path, count: int) -> None:
    rng = random.Random(7)
    path = tmp_path / "text.txt"
    valid = "naïve café — 世界 🙂\n".encode() * 20
    for _ in range(count):
        data = damaged(valid, rng)
        path.write_bytes(data)
        accepted_or_refused(lambda: read_corpus(DataConfig(path=path)))
        assert path.read_bytes() == data


@counted(60, 1000)
def test_any_prepared_tokens_are_those_of_the_text_or_made_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, count: int
) -> None:
    rng = random.Random(8)
    text, cache = tmp_path / "text.txt", tmp_path / "cache"
    text.write_text(TEXT[:2000], encoding="utf-8")
    data = DataConfig(path=text, tokenizer="characters")
    right = prepare(data, cache)
    train, val = np.array(right.train), np.array(right.val)
    (directory,) = cache.iterdir()
    for _ in range(count):
        path = rng.choice(sorted(path for path in directory.rglob("*") if path.is_file()))
        content = path.read_bytes()
        path.write_bytes(
            odd_file(content, rng) if path.suffix == ".json" else damaged(content, rng)
        )
        found = []
        assert accepted_or_refused(lambda: found.append(prepare(data, cache)))  # noqa: B023
        assert np.array_equal(found[0].train, train)
        assert np.array_equal(found[0].val, val)
        assert found[0].fingerprint == right.fingerprint
    assert {path.name for path in cache.iterdir()} == {directory.name}


@counted(30, 500)
def test_any_prepared_pairs_are_those_of_the_texts_or_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    rng = random.Random(9)
    monkeypatch.setenv("JAXFORMER_CACHE", str(tmp_path / "cache"))
    data = CopyConfig(num_pairs=40, num_val_pairs=8)
    right = prepare_pairs(data).fingerprint
    (directory,) = (tmp_path / "cache").iterdir()
    before = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    for _ in range(count):
        path = rng.choice(sorted(before))
        content = before[path]
        path.write_bytes(
            odd_file(content, rng) if path.suffix == ".json" else damaged(content, rng)
        )
        assert accepted_or_refused(lambda: prepare_pairs(data))
        assert prepare_pairs(data).fingerprint == right
    after = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    assert after.keys() == before.keys()


@counted(150, 3000)
def test_any_safetensors(tmp_path: Path, count: int) -> None:
    rng = random.Random(12)
    path = tmp_path / "model.safetensors"
    tensors = {"a.weight": np.ones((3, 4), np.float32), "b": np.zeros(5, np.int64)}
    save_tensors(tensors, path)
    valid = path.read_bytes()
    end = 8 + int.from_bytes(valid[:8], "little")
    refused = 0
    for _ in range(count):
        if rng.random() < 0.3:
            data = damaged(valid, rng)
        else:
            header = odd_file(valid[8:end], rng)
            data = len(header).to_bytes(8, "little") + header + valid[end:]
        path.write_bytes(data)
        refused += not accepted_or_refused(lambda: load_tensors(path))
        assert path.read_bytes() == data
    assert refused > count / 2


UNSAFE = {"pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib"}


def test_nothing_that_is_loaded_is_unpickled() -> None:
    """No module imports a pickle, `np.load` never allows one, `torch.load` takes weights only."""
    root = Path(jaxformer.__file__).parent
    loads = 0
    for path in [p for room in (root, root.parent / "train") for p in room.rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                assert not UNSAFE & {name.name.partition(".")[0] for name in node.names}, path
            elif isinstance(node, ast.ImportFrom):
                assert (node.module or "").partition(".")[0] not in UNSAFE, path
            elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("np.load", "torch.load"):
                loads += 1
                given = {word.arg: ast.unparse(word.value) for word in node.keywords}
                if ast.unparse(node.func) == "np.load":
                    assert given.get("allow_pickle") == "False", path
                else:
                    assert given.get("weights_only") == "True", path
    assert loads, "the pairs are read by np.load"
