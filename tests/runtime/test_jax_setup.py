"""Settings of JAX that cannot work are refused before the start, by the variable's name."""

import os
import subprocess
import sys

import jax
import pytest

from jaxformer.errors import UserError
from jaxformer.runtime.jax_setup import OF_THE_COMPILER, OF_THE_RUN, settings, start_jax

START = """
from jaxformer.cli.arguments import run_command
def main():
    from jaxformer.runtime.jax_setup import start_jax
    start_jax()
run_command("p", main)
"""


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("numpy_rank_promotion", "raise"),
        ("numpy_dtype_promotion", "strict"),
        ("transfer_guard", "disallow"),
        ("transfer_guard_host_to_device", "disallow_explicit"),
        ("transfer_guard_device_to_host", "disallow"),
        ("transfer_guard_device_to_device", "disallow"),
        ("no_tracing", True),
        ("no_execution", True),
    ],
)
def test_a_mode_that_forbids_what_the_models_do_is_refused(setting, value):
    with (
        getattr(jax, setting)(value),
        pytest.raises(UserError, match=f"JAX_{setting.upper()}={value} .*unset"),
    ):
        start_jax()
    start_jax()


@pytest.mark.parametrize(
    ("name", "value", "names"),
    [
        ("jax_default_prng_impl", "rbg", OF_THE_RUN),
        ("jax_random_seed_offset", 7, OF_THE_RUN),
        ("jax_disable_jit", True, OF_THE_COMPILER),
    ],
)
def test_a_run_notes_what_changes_its_numbers(name, value, names):
    """Random keys of another kind or seed draw other numbers, functions not compiled round them."""
    before = getattr(jax.config, name)
    jax.config.update(name, value)
    try:
        assert settings(*names).get(name.upper()) == value
    finally:
        jax.config.update(name, before)


def test_a_device_that_is_not_there_is_refused_even_without_a_reason(monkeypatch):
    """As JAX 0.10 does without CUDA: an assertion that says nothing."""

    def fail() -> None:
        raise AssertionError

    monkeypatch.setattr(jax, "devices", fail)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    with pytest.raises(UserError, match="JAX_PLATFORMS=cuda"):
        start_jax()


@pytest.mark.parametrize(
    ("name", "value"), [("JAX_PLATFORMS", "abacus"), ("JAX_ENABLE_X64", "perhaps")]
)
def test_what_jax_refuses_is_one_line_that_names_the_variable(name, value):
    words = [sys.executable, "-c", START]
    done = subprocess.run(words, capture_output=True, text=True, env=os.environ | {name: value})
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert f"{name}={value}" in done.stderr
