"""Texts that several tests read: a file, and a directory of files."""

import pytest

TEXT = "It is a truth universally acknowledged,\nthat é is a letter.\n" * 20


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture
def folder(tmp_path):
    """Forty documents in two levels."""
    root = tmp_path / "texts"
    (root / "inner").mkdir(parents=True)
    for i in range(40):
        (root / ("inner" if i % 2 else "") / f"{i:02}.txt").write_text(f"document {i}\n")
    return root
