"""What pip installs: the packages that setup.py names."""

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def installed(monkeypatch) -> dict:
    """What setup.py asks setuptools for."""
    setuptools = pytest.importorskip("setuptools")
    asked: dict = {}
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(setuptools, "setup", lambda **settings: asked.update(settings))
    runpy.run_path(str(ROOT / "setup.py"))
    return asked


def test_nothing_but_the_two_packages_is_at_the_top(installed):
    """A package `train` or `tests` there would collide with a user's own."""
    assert {name.partition(".")[0] for name in installed["packages"]} == {"jaxformer", "torchref"}


def test_every_package_is_installed_and_the_recipes_too(installed):
    places = [installed["package_dir"].get(name, name) for name in installed["packages"]]
    files = {path for place in places for path in (ROOT / place.replace(".", "/")).glob("*.py")}
    expected = {
        path for top in ("jaxformer", "torchref", "train") for path in (ROOT / top).rglob("*.py")
    }
    assert files == expected
    assert installed["package_dir"] == {"jaxformer.recipes": "train"}
