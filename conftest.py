"""Settings every test shares; they have to stand before jax starts."""

import ctypes
import gc
import os
import signal
import sys
from pathlib import Path

import pytest
from hypothesis import Phase, settings
from jaxtyping import install_import_hook

from jaxformer.runtime.compile_cache import processor
from jaxformer.runtime.signals import ENDING
from tests.flags import QUICK_TO_COMPILE

os.environ["JAX_PLATFORMS"] = "cpu"
# Eight simulated devices, so that every mesh can be tried on any machine. Most functions are
# compiled for one small run, which never earns back what optimizing costs.
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count=8 {QUICK_TO_COMPILE}"
UNOPTIMIZED = "JAX_DISABLE_MOST_OPTIMIZATIONS"
os.environ[UNOPTIMIZED] = "1"

# Tests start many processes that compile the same small functions, and so does the next run of the
# tests. What was compiled for another processor may not run on this one.
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(
    Path(__file__).with_name(".pytest_cache") / "d" / f"jax-{processor()}"
)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

# jax makes many objects and few cycles: seldom looking for them saves a tenth of the time.
gc.set_threshold(20_000, 20, 20)

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

# The tests send every signal, also where the shell or nohup that started them has some ignored.
for number in ENDING:
    if signal.getsignal(number) is signal.SIG_IGN:
        default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        signal.signal(number, default)


MEMORY = 1.5e9
"""Bytes of a worker above which it returns freed memory, then forgets what it has compiled."""


def memory_is_short() -> bool:
    """Whether this process holds more than it should, where the system tells."""
    statm = Path("/proc/self/statm")
    pages = int(statm.read_text().split()[1]) if statm.exists() else 0
    return pages * os.sysconf("SC_PAGE_SIZE") > MEMORY


def return_freed_memory() -> None:
    """What was freed goes back to the system, as malloc does seldom by itself."""
    ctypes.CDLL(None).malloc_trim(0)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """The compiler's settings for a test, and for the processes that it starts."""
    unoptimized = "0" if item.get_closest_marker("optimized") else "1"
    if os.environ[UNOPTIMIZED] != unoptimized:
        import jax

        os.environ[UNOPTIMIZED] = unoptimized
        jax.config.update(UNOPTIMIZED.lower(), unoptimized == "1")
        jax.clear_caches()


def pytest_runtest_teardown() -> None:
    if "jax" in sys.modules and memory_is_short():
        return_freed_memory()
        if memory_is_short():
            sys.modules["jax"].clear_caches()
            gc.collect()
            return_freed_memory()
