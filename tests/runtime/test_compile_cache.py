"""The cache of compiled programs: where it lies, what turns it off, and what it never does."""

import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from jaxformer.config import RunOptions
from jaxformer.errors import UserError
from jaxformer.run import loop
from jaxformer.runtime.compile_cache import (
    SETTINGS,
    cache_dir,
    enable_compile_cache,
    processor,
)
from tests.run.tiny import tiny_config

CACHE = {**SETTINGS, "jax_compilation_cache_dir": None, "jax_enable_compilation_cache": True}
FACTORS = iter(range(2, 1000))


@pytest.fixture
def home(tmp_path, monkeypatch) -> Iterator[Path]:
    """A user's cache directory, and JAX's settings as they are without a variable."""
    before = {name: getattr(jax.config, name) for name in CACHE}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("jaxformer_cache", *CACHE):
        monkeypatch.delenv(name.upper(), raising=False)
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()
    yield tmp_path / "cache"
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def enable() -> None:
    """As a run does, but so that functions are kept that compile in no time."""
    enable_compile_cache()
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def new_function() -> Callable[[float], float]:
    """A compiled function that no other test has."""
    factor = next(FACTORS)
    function = jax.jit(lambda x: x * factor)
    return lambda x: float(function(x))


def programs(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.rglob("*-cache"))


def test_a_program_is_kept_for_this_processor_and_found_again(home):
    enable()
    function = new_function()
    assert function(3.0) % 3 == 0
    kept = programs(home / "jaxformer" / f"jax-{processor()}")
    assert len(kept) == 1
    hits = []
    jax.monitoring.register_event_listener(lambda event, **_: hits.append(event))
    jax.clear_caches()
    assert function(3.0) % 3 == 0
    assert "/jax/compilation_cache/cache_hits" in hits
    assert programs(home) == kept
    assert jax.config.jax_compilation_cache_max_size == 2**30


def test_each_kind_of_processor_has_its_own_directory(tmp_path):
    old, new, same = (tmp_path / name for name in ("old", "new", "same"))
    old.write_text("model name\t: A\nflags\t\t: sse avx\ncpu MHz\t: 1\n")
    new.write_text("model name\t: A\nflags\t\t: sse avx avx512f\ncpu MHz\t: 1\n")
    same.write_text("model name\t: A\nflags\t\t: sse avx\ncpu MHz\t: 2\n")
    assert processor(old) == processor(same) != processor(new)
    assert processor(tmp_path / "missing") == processor(tmp_path / "missing too")


@pytest.mark.parametrize(
    ("own", "general", "place"),
    [
        ("", "", "~/.cache/jaxformer"),
        ("", "/var/tmp/cache", "/var/tmp/cache/jaxformer"),
        ("/var/tmp/own", "/var/tmp/cache", "/var/tmp/own"),
    ],
)
def test_it_lies_in_the_users_cache(monkeypatch, own, general, place):
    monkeypatch.setenv("JAXFORMER_CACHE", own)
    monkeypatch.setenv("XDG_CACHE_HOME", general)
    assert cache_dir() == Path(place).expanduser() / f"jax-{processor()}"


@pytest.mark.parametrize("directory", ["of/the/user", ""])
def test_the_users_own_directory_stays(home, tmp_path, directory):
    own = directory and str(tmp_path / directory)
    jax.config.update("jax_compilation_cache_dir", own)
    enable()
    new_function()(3.0)
    assert jax.config.jax_compilation_cache_dir == own
    assert len(programs(tmp_path)) == bool(own)
    assert not home.exists()


def test_jax_may_be_told_to_keep_nothing(home):
    jax.config.update("jax_enable_compilation_cache", False)
    enable()
    assert not home.exists()


def test_the_size_that_the_environment_gives_stays(home, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_MAX_SIZE", "4096")
    jax.config.update("jax_compilation_cache_max_size", 4096)
    enable()
    assert jax.config.jax_compilation_cache_max_size == 4096


def test_a_home_that_cannot_be_written_is_left_alone(home):
    home.write_text("no directory")
    enable()
    assert jax.config.jax_compilation_cache_dir is None
    new_function()(3.0)


def test_without_a_home_nothing_is_kept(home, monkeypatch):
    def no_home(*_: object) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setattr(Path, "home", no_home)
    enable()
    assert jax.config.jax_compilation_cache_dir is None


def test_a_cache_that_fails_later_says_nothing(home):
    """Warnings are errors here: a full disk or a damaged program costs a compilation alone."""
    enable()
    function = new_function()
    function(3.0)
    (kept,) = home.rglob("*-cache")
    kept.write_bytes(kept.read_bytes()[:100])
    jax.clear_caches()
    assert function(3.0) % 3 == 0
    shutil.rmtree(home)
    home.write_text("no directory any more")
    new_function()(3.0)
    with pytest.raises(UserWarning), warnings.catch_warnings():
        warnings.warn("others are shown", UserWarning, stacklevel=1)


def test_a_program_whose_process_was_killed_before_its_time_of_use_goes(home):
    """JAX would find no program to delete beside it, and keep none any more."""
    place = cache_dir()
    place.mkdir(parents=True)
    (place / "killed-cache").touch()
    enable()
    new_function()(3.0)
    (kept,) = programs(home)
    assert kept != "killed-cache"


@pytest.mark.parametrize("wanted", [True, False])
def test_a_run_keeps_its_programs_unless_its_flag_says_no(tmp_path, monkeypatch, wanted):
    calls = []
    monkeypatch.setattr(loop, "enable_compile_cache", lambda: calls.append(wanted))
    config = tiny_config(tmp_path)
    config.data.path.unlink()
    with pytest.raises(UserError, match=r"text\.txt"):
        loop.train(config, RunOptions(run_dir=tmp_path / "run", compile_cache=wanted))
    assert calls == [True] * wanted
