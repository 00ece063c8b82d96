"""A sealed directory verifies; after any damage to any of its files it does not."""

import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxformer import manifest
from jaxformer.manifest import CorruptionError

FILES = {"a": b"alpha" * 9, "sub/b": bytes(range(256)), "sub/deeper/.c": b"x", "empty": b""}


def sealed(directory: Path) -> Path:
    shutil.rmtree(directory, ignore_errors=True)
    for name, data in FILES.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    manifest.write(directory, {"step": 3, "note": "ä"})
    return directory


def test_verify_returns_what_was_written(tmp_path: Path) -> None:
    content = manifest.verify(sealed(tmp_path / "d"))
    assert content == manifest.read(tmp_path / "d")
    assert (content["step"], content["note"]) == (3, "ä")
    assert {name: size for name, (size, _) in content["files"].items()} == {
        name: len(data) for name, data in FILES.items()
    }


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_flipped_bit_or_cut_is_noticed_and_named(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    directory = sealed(tmp_path_factory.getbasetemp() / "flip")
    name = data.draw(st.sampled_from([*(name for name in FILES if FILES[name]), manifest.FILE]))
    path = directory / name
    damaged = bytearray(path.read_bytes())
    position = data.draw(st.integers(0, len(damaged) - 1))
    if data.draw(st.booleans()):
        damaged[position] ^= 1 << data.draw(st.integers(0, 7))
    else:
        del damaged[position:]
    path.write_bytes(damaged)
    with pytest.raises(CorruptionError) as error:
        manifest.verify(directory)
    assert str(error.value).startswith(f"{name} has other bytes")


@pytest.mark.parametrize("name", [*FILES, manifest.FILE])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    (sealed(tmp_path / "d") / name).unlink()
    with pytest.raises(CorruptionError) as error:
        manifest.verify(tmp_path / "d")
    assert str(error.value).startswith(f"{name} cannot be read")


@pytest.mark.parametrize("name", ["stranger", "sub/.stranger", "sub/manifest.jsonl"])
def test_a_stranger_is_named_and_changes_nothing(tmp_path: Path, name: str) -> None:
    directory = sealed(tmp_path / "d")
    content = manifest.verify(directory)
    assert manifest.strangers(directory) == []
    (directory / name).touch()
    assert manifest.verify(directory) == content
    assert manifest.strangers(directory) == [name]
    assert manifest.strangers(directory, parts=()) == ([] if name.startswith("sub/") else [name])


def test_swapped_files_are_noticed(tmp_path: Path) -> None:
    directory = sealed(tmp_path / "d")
    (directory / "a").rename(directory / "t")
    (directory / "empty").rename(directory / "a")
    (directory / "t").rename(directory / "empty")
    with pytest.raises(CorruptionError):
        manifest.verify(directory)


def test_a_directory_is_sealed_once(tmp_path: Path) -> None:
    with pytest.raises(FileExistsError):
        manifest.write(sealed(tmp_path / "d"), {"step": 4})
    assert manifest.verify(tmp_path / "d")["step"] == 3


def test_a_rewritten_manifest_verifies_and_a_begun_one_does_no_harm(tmp_path: Path) -> None:
    content = manifest.verify(sealed(tmp_path / "d"))
    (tmp_path / "d" / manifest.BEGUN).write_bytes(b"{")  # as a kill leaves it
    assert manifest.verify(tmp_path / "d") == content
    manifest.rewrite(tmp_path / "d", {**content, "step": 4})
    assert manifest.verify(tmp_path / "d") == {**content, "step": 4}
    assert not (tmp_path / "d" / manifest.BEGUN).exists()
