"""Settings every test shares; they have to stand before jax starts."""

import os
import signal

import pytest
from hypothesis import Phase, settings
from jaxtyping import install_import_hook

os.environ["JAX_PLATFORMS"] = "cpu"
# Eight simulated devices, so that every mesh can be tried on any machine.
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

# Every call of these rooms' functions has its shapes and types checked. `generate` is left out: it
# refuses bad input by itself, in words.
ROOMS = (
    "layers",
    "models",
    "training",
    "decoding.sampling",
    "decoding.state",
    "weights",
    "sharding",
)
install_import_hook([f"jaxformer.{room}" for room in ROOMS], "beartype.beartype")

# Every drawn shape is compiled: few examples, the same in every run, and none spent on shrinking.
settings.register_profile(
    "few",
    deadline=None,
    max_examples=5,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
)
settings.load_profile("few")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # tests run in the background send it too
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    # Tests start many processes that compile the same small functions.
    assert config.cache is not None
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(config.cache.mkdir("jax"))
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
