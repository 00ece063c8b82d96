"""Settings every test shares; they have to stand before jax starts."""

import os

import pytest

os.environ["JAX_PLATFORMS"] = "cpu"
# Eight simulated devices, so that every mesh can be tried on any machine.
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"


def pytest_configure(config: pytest.Config) -> None:
    # Tests start many processes that compile the same small functions.
    assert config.cache is not None
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(config.cache.mkdir("jax"))
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
