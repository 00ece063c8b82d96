"""A run on eight devices or one, begun once for a module and copied for each of its tests."""

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from jaxformer.config import (
    CheckpointConfig,
    DataConfig,
    GPTConfig,
    LanguageConfig,
    MeshConfig,
    RunOptions,
)
from jaxformer.run import loop
from jaxformer.run.loop import train
from tests.run import tiny

TEXT = "".join(f"{i} bottles of beer on the wall, {i} bottles of beer.\n" for i in range(400))


@pytest.fixture
def drawn() -> None:
    """For tests whose runs draw their curves."""


@pytest.fixture(autouse=True)
def undrawn(request, monkeypatch) -> None:
    """Other runs draw none, which takes half a second each."""
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr(loop, "draw_curves", lambda *_: None)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Iterator[Path]:
    """Where the text is, and what was prepared of it."""
    place = tmp_path_factory.mktemp("loop")
    (place / "text.txt").write_text(TEXT, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXFORMER_CACHE", str(place / "cache"))
        yield place


@pytest.fixture
def config(divided, monkeypatch) -> LanguageConfig:
    """On one device, which compiles sooner."""
    tiny.one_device(monkeypatch)
    return dataclasses.replace(divided, mesh=MeshConfig())


@pytest.fixture(scope="module")
def begun(place, divided) -> Path:
    """A run on one device that was stopped after two steps."""
    with pytest.MonkeyPatch.context() as patch:
        tiny.one_device(patch)
        config = dataclasses.replace(divided, mesh=MeshConfig())
        train(config, RunOptions(run_dir=place / "begun", stop_after=2))
    return place / "begun"


@pytest.fixture
def run_dir(begun, tmp_path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(begun, tmp_path / "run"))


@pytest.fixture(scope="module")
def divided(place) -> LanguageConfig:
    """On eight devices."""
    return LanguageConfig(
        model=GPTConfig(
            vocab_size=0,
            context_length=16,
            width=16,
            num_heads=2,
            mlp_width=32,
            num_layers=2,
            dropout_rate=0.2,
        ),
        data=DataConfig(path=place / "text.txt", tokenizer="characters"),
        checkpoint=CheckpointConfig(every=15, keep=2),
        mesh=MeshConfig(data=4, fsdp=2),
        steps=40,
        batch_size=8,
        eval_every=20,
        seed=3,
    )
